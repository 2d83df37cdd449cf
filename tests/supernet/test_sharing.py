"""Adapters that serve several bit-widths: who shares, what agreement measures, what is stored, what is exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from supernet.adapters import ADAPTERS, LoRA, RoutedLoRA, TrainedScales
from supernet.agreement import measure_agreement, read_agreement, write_agreement
from supernet.build import extract
from supernet.checkpoint import ADAPTERS_FILE, AGREEMENT_FILE
from supernet.create import create
from supernet.peft import to_peft
from supernet.recipe import Recipe
from supernet.sharing import Matched, Shared
from supernet.space import Choice
from supernet.train import adapter_parameters
from tests.supernet.conftest import Made, assert_measured, make
from tests.supernet.test_build import disturb, mixed
from tests.tiny import FAMILIES, windows

TINY = {"bits": (2, 3, 8), "group_size": 16, "steps": 4, "block_steps": 8, "batch": 2, "window_tokens": 16}


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no trial: a few steps of a tiny model win nothing."""
    monkeypatch.setattr("supernet.stages.trial.try_adapters", lambda *_: {})


def test_a_shared_adapter_is_one_adapter(made: Made) -> None:
    made.supernet.adapt(LoRA, (2, 3, 4), seed=0, sharing=Shared())
    matrix = made.supernet.matrices["model.layers.0.mlp.up_proj"]
    assert list(matrix.adapters) == ["int2g16+int3g16+int4g16"]
    assert matrix.adapter(Choice(2, 16)) is matrix.adapter(Choice(4, 16))
    assert matrix.adapter(Choice(8, 16)) is None
    shared = sum(p.numel() for p in adapter_parameters(made.supernet).values())
    made.supernet.adapt(LoRA, (2, 3, 4), seed=0)
    assert sum(p.numel() for p in adapter_parameters(made.supernet).values()) == 3 * shared


def test_dropping_one_choice_leaves_the_others_their_adapter(made: Made) -> None:
    made.supernet.adapt(TrainedScales, (2, 3, 4), seed=0, sharing=Shared())
    matrix = made.supernet.matrices["model.layers.0.mlp.up_proj"]
    before = matrix.adapter(Choice(3, 16))
    matrix.drop([Choice(2, 16)])
    assert list(matrix.adapters) == ["int3g16+int4g16"]
    assert matrix.adapter(Choice(3, 16)) is before


def test_groups_follow_the_agreement(made: Made) -> None:
    low, middle, high = (Choice(bits, 16) for bits in (2, 3, 4))
    pairs = {(low, middle): 0.0, (low, high): 0.0, (middle, high): 0.9}
    agreement = {unit.name: pairs for unit in made.spec.units}
    made.supernet.adapt(TrainedScales, (2, 3, 4), seed=0, sharing=Matched(), agreement=agreement)
    names = {name for matrix in made.supernet.matrices.values() for name in matrix.adapters}
    assert names == {"int2g16", "int3g16+int4g16"}


@pytest.mark.parametrize("adapter", ["scales", "lora"])
def test_agreement_is_a_cosine_and_moves_nothing(adapter: str, made: Made, tmp_path: Path) -> None:
    made.supernet.adapt(ADAPTERS[adapter], (3, 4, 8), seed=0, sharing=Shared())
    before = {name: value.clone() for name, value in adapter_parameters(made.supernet).items()}
    found = measure_agreement(made.model, made.supernet, (3, 4, 8), windows(4, 16).split(2))
    assert list(found) == [unit.name for unit in made.spec.units if not unit.is_table]
    for pairs in found.values():
        assert [(a.bits, b.bits) for a, b in pairs] == [(3, 4), (3, 8), (4, 8)]
        assert all(-1.0001 <= cosine <= 1.0001 for cosine in pairs.values())
    after = adapter_parameters(made.supernet)
    assert all(torch.equal(value, after[name]) and after[name].grad is None for name, value in before.items())
    write_agreement(tmp_path / "agreement.json", found)
    assert read_agreement(tmp_path / "agreement.json") == found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_routed_subnet_computes_its_own_mixture_and_exports_it(family: str) -> None:
    made = make(family)
    made.supernet.adapt(RoutedLoRA, (2, 3, 4), seed=0, sharing=Shared())
    disturb(made)
    ids, mixtures = windows(2, 12), []
    for seed in range(2):
        subnet = mixed(made, seed)
        made.supernet.activate(subnet)
        ours = made.supernet.model(ids).logits
        adapter = next(iter(made.supernet.adapters(subnet).values()))
        assert isinstance(adapter, RoutedLoRA)
        mixtures.append(adapter.mixture())
        made.supernet.activate(made.space.uniform(made.spec, 2))  # what is exported is activated anew
        assert torch.allclose(extract(made.supernet, subnet)(ids).logits, ours, rtol=1e-3, atol=2e-4)
        assert torch.allclose(to_peft(made.supernet, subnet)(input_ids=ids).logits, ours, rtol=1e-3, atol=2e-4)
    assert not torch.equal(*mixtures)


@pytest.mark.parametrize(
    "options",
    [
        {"adapter": "lora", "rank": 4, "sharing": "shared"},
        {"adapter": "routed", "sharing": "shared"},
        {"adapter": "scales", "sharing": "matched"},
        {"adapter": "pooled", "quantizer": "gptq", "grid": "int"},
        {"adapter": "rounding"},
    ],
    ids=lambda options: options["adapter"],
)
@pytest.mark.usefixtures("lenient")
def test_what_was_trained_is_what_is_loaded(options: dict, source: str, data: str, tmp_path: Path) -> None:
    recipe = Recipe(**TINY, data=data, learning_rate=0.02, **options)
    files = create(source, tmp_path / "net", recipe)
    assert files.info["adapted_bits"] == ["2", "3"]
    assert (files.path / ADAPTERS_FILE).exists() == (files.deploys == "side")
    assert not (files.path / AGREEMENT_FILE).exists()
    assert_measured(files)


@pytest.mark.usefixtures("lenient")
def test_a_folder_with_side_paths_has_nothing_folded(source: str, data: str, tmp_path: Path) -> None:
    files = create(source, tmp_path / "net", Recipe(**TINY, data=data, adapter="lora"))
    with pytest.raises(ValueError, match="do not fold into its codes"):
        files.folded("model.layers.0.mlp.up_proj", Choice(2, 16))
