"""The checkpoint of a training: what it says of it, and the parameters that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from records.errors import InputError
from supernet.files import read_meta, read_tensors


@dataclass(frozen=True)
class Recorded:
    """The options of a training, and of each step so far its subnets: how many bits they have, and their losses."""

    options: Mapping[str, Any]
    history: list[list[tuple[float, float]]]

    @property
    def steps(self) -> int:
        """Those that it is to have."""
        return int(self.options["steps"])

    @property
    def losses(self) -> list[float]:
        """One number a step: the mean over its subnets."""
        return [fmean(loss for _, loss in trained) for trained in self.history]

    @property
    def whole(self) -> bool:
        return len(self.history) == self.steps


def recorded(path: Path) -> Recorded | None:
    """None where no training has begun. InputError where the checkpoint is damaged or of an earlier version."""
    if not path.exists():
        return None
    meta = read_meta(path)
    if "history" not in meta:
        raise InputError(f"the checkpoint {path} is of an earlier version; train into a new folder")
    return Recorded(meta["options"], meta["history"])


def restore(path: Path, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Give the `parameters` what the checkpoint has for them; all that it has, by name."""
    tensors, _ = read_tensors(path)
    for name, parameter in parameters.items():
        if name not in tensors:
            raise InputError(f"the checkpoint {path} is of another supernet; train into a new folder")
        parameter.data.copy_(tensors[name])
    return tensors
