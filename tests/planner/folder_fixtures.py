"""Tiny supernets in either grid, and what a package of a subnet must hold, computed without the exporter."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from planner.testing.supernets import Folded, RoundedSupernet
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec
from supernet.ties import siblings, tied


class GridModel(RoundedSupernet):
    """Rounded to the nearest on the choice's own grid: with siblings tied, so that a subnet of it is one for every
    runtime, or `untied`."""

    def __init__(self, folder: Path, untied: bool = False) -> None:
        super().__init__(folder)
        if not untied:
            self.spec = tied(self.spec, siblings(self.spec))

    def dequantized(self, subnet: Subnet) -> Any:
        """The plain model whose weights are the subnet's."""
        return super().subnet_model(subnet)


def cycled(spec: ModelSpec, choices: Iterable[str], table: str = "int8g64", head: str = "int8g64") -> Subnet:
    """A subnet that goes through `choices` over the linears, with the tables at their own."""
    cycle = [Choice.parse(text) for text in choices]
    tables = {"embedding": Choice.parse(table), "head": Choice.parse(head)}
    return Subnet.of({u.name: tables.get(u.role, cycle[i % len(cycle)]) for i, u in enumerate(spec.units)})


def stored(folded: Folded, bias: bool = False) -> NDArray[np.float32]:
    """What a package's parts stand for once the scale is float16, and with `bias` what a code of 0 is, too."""
    rows, columns = folded.codes.shape
    scale = folded.scale.astype(np.float16).astype(np.float32)[..., None]
    zero = folded.zero[..., None].astype(np.float32)
    codes = folded.codes.reshape(rows, scale.shape[1], -1).astype(np.float32)
    if bias:
        exact = codes * scale + (-zero * scale).astype(np.float16).astype(np.float32)
    else:
        exact = (codes - zero) * scale
    return exact.reshape(rows, columns)


def packaged_model(files: GridModel, subnet: Subnet, bias: bool = False, half_tables: bool = False) -> Any:
    """The plain float32 model with the weights that a package holds."""
    import copy

    model = copy.deepcopy(files.model)
    parameters = dict(model.named_parameters())
    choices = {linear.name: (unit, subnet[unit.name]) for unit in files.spec.units for linear in unit.linears}
    with torch.no_grad():
        for name, parameter in parameters.items():
            unit, choice = choices.get(name.removesuffix(".weight"), (None, None))
            if unit is None or choice is None:
                parameter.copy_(parameter.half().float())
                continue
            folded = files.folded(name.removesuffix(".weight"), choice)
            if half_tables and unit.role == "embedding":
                weight = folded.dequantized().astype(np.float16).astype(np.float32)
            else:
                weight = stored(folded, bias)
            parameter.copy_(torch.from_numpy(weight))
    return model


def listed(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}
