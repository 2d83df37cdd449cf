"""What is read of an open supernet to write a package. `supernet.checkpoint.SupernetFiles` is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec

if TYPE_CHECKING:
    from supernet.rotary import Rotary


class FoldedMatrix(Protocol):
    """One matrix as a runtime stores it, adapter folded in; each part is something that numpy makes an array of.

    codes: uint8 `(out_features, in_features)`, unpacked; scale: float32 and zero: uint8, or float32 where zeros are any
    numbers, both `(out_features, groups)`; sides: what its format stores beside the codes, by name.
    """

    @property
    def codes(self) -> Any: ...
    @property
    def scale(self) -> Any: ...
    @property
    def zero(self) -> Any: ...
    @property
    def sides(self) -> Mapping[str, Any]: ...


def dequantized(folded: FoldedMatrix, rows: slice = slice(None)) -> NDArray[np.float32]:
    """The weights `(out_features, in_features)` that some `rows` of a matrix stand for."""
    parts = (np.asarray(part)[rows].astype(np.float32) for part in (folded.codes, folded.scale, folded.zero))
    codes, scale, zero = parts
    groups = codes.reshape(*scale.shape, -1)
    return np.asarray((groups - zero[..., None]) * scale[..., None], np.float32).reshape(codes.shape)


class WeightSource(Protocol):
    """A supernet, for whoever writes a subnet of it."""

    @property
    def model_dir(self) -> Path:
        """The folder of what describes the model."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def trusted(self) -> bool:
        """Whether the model's own code may run."""

    def folded(self, linear: str, choice: Choice) -> FoldedMatrix:
        """One matrix at one choice."""

    def float_tensors(self) -> Mapping[str, Any]:
        """What is never quantized, by its Hugging Face name, float32."""

    def rotaries(self) -> Mapping[str, Rotary]:
        """The model's rotary embeddings, by the type of layer."""


class PackageSource(WeightSource, Protocol):
    """A supernet, for whoever makes a package of it: weights, and what a package is held to."""

    @property
    def path(self) -> Path: ...

    @property
    def fingerprint(self) -> str:
        """Changes when any weight does."""

    def check_hashes(self) -> None:
        """InputError naming the first file whose bytes are not those that were written."""

    def evidence(self) -> Mapping[str, Any]:
        """What the full model says of its own text: the arrays of `supernet.evidence`, by name."""

    def subnet_model(self, subnet: Subnet) -> Any:
        """One subnet as a torch model in float32."""
