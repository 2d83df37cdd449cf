"""A tiny supernet, model and text that the tests of this folder share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from supernet.build import Supernet, build
from supernet.checkpoint import SupernetFiles
from supernet.choices import make_space
from supernet.evaluate import evaluate
from supernet.model import spec_of_model
from supernet.quantize import quantize
from supernet.quantizers import RTN, Quantizer
from supernet.sensitivity_table import SensitivityTable
from supernet.space import SearchSpace
from supernet.spec import ModelSpec
from tests.tiny import TEXT, save_tiny, tiny_model, windows


@dataclass
class Made:
    model: Any
    spec: ModelSpec
    space: SearchSpace
    supernet: Supernet


def make(
    family: str = "llama", bits: tuple[int, ...] = (2, 3, 4, 8), quantizer: Quantizer | None = None, grid: str = "int",
    **changes: Any,
) -> Made:  # fmt: skip
    model = tiny_model(family, **changes)
    spec = spec_of_model(model, family)
    space = make_space(spec, bits, 16, grid=grid)
    weights = quantize(model, spec, space, quantizer or RTN(), windows())
    return Made(model, spec, space, build(model, spec, space, weights))


@pytest.fixture
def made() -> Made:
    return make()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model's folder."""
    return str(save_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text file."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 4)
    return str(path)


def assert_measured(files: SupernetFiles) -> None:
    """What the sensitivities say of uniform subnets is what these lose once loaded: that is how they are scaled."""
    table = SensitivityTable.load(files.path / "sensitivity.json")
    subnets = [files.space.uniform(files.spec, bits) for bits in files.space.bits(files.spec)]
    found = evaluate(files.load(), subnets, files.reference())
    assert [table.predict(subnet) for subnet in subnets] == pytest.approx([quality.kl for quality in found], rel=1e-5)
