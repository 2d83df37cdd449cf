"""A supernet of a shape, as far as planning reads one: no weights, sensitivities drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.shapes import Shape
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Choice, SearchSpace
from supernet.spec import ModelSpec


@dataclass(frozen=True)
class ShapedSupernet:
    path: Path
    spec: ModelSpec
    space: SearchSpace
    fingerprint: str
    deploys: str = "scales"
    activations: Mapping[str, float] = field(default_factory=dict)

    @property
    def model_dir(self) -> Path:
        """Nothing describes the model: ONNX Runtime keeps that in files of its own."""
        return self.path


def shaped(shape: Shape, group_size: int, bits: tuple[int, ...], seed: int, folder: Path) -> ShapedSupernet:
    """In the new `folder`. Losses fall with bits as they do in models, and differ by units."""
    folder.mkdir()
    spec, rng = shape.spec(), np.random.default_rng(seed)
    holding = OnnxRuntime().holding(spec)
    options = {}
    for unit in spec.units:
        choices = [Choice(b, group_size) for b in sorted({4, 8, *bits} if unit.is_table else bits)]
        options[unit.name] = tuple(c for c in choices if holding.unit_refusal(unit, c) is None)
    loss = {}
    for unit, choices in options.items():
        scale = 0.05 * rng.lognormal()
        loss[unit] = {str(choice): float(scale * np.exp(-1.4 * (choice.bits - 2))) for choice in choices}
    fingerprint = f"{shape.name} {seed}"
    SensitivityTable("drawn", loss, supernet=fingerprint).save(folder / SENSITIVITY_FILE)
    return ShapedSupernet(folder, spec, SearchSpace.of(options), fingerprint)
