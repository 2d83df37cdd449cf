"""Rotary embeddings as tables that are the same to the last bit on every machine.

What a model's own code computes is decided once, when training ends: inverse frequencies are powers, and a power's last
bit depends on the vector units. A table of them is made of additions, multiplications and roundings alone, which
IEEE 754 makes the same everywhere; numpy's cosine is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from supernet import facts

if TYPE_CHECKING:
    from torch import Tensor

ROTARY = "rotary.safetensors"
ROWS = 2**12  # of a table that are made at a time
# pi / 2 in three parts, the first two of 29 bits: their products with whole numbers below 2**24 are exact.
HALF_PI = (float.fromhex("0x1.921fb54p+0"), float.fromhex("0x1.10b4611p-30"), float.fromhex("0x1.4c4c6628b80dcp-59"))
TERMS = 9  # of each series: the next one is below 2**-58 within pi / 4


@dataclass(frozen=True)
class Rotary:
    """inverse: the inverse frequencies, float32 numbers; factor: what cosines and sines are multiplied by."""

    inverse: tuple[float, ...]
    factor: float

    def table(self, tokens: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines and sines `(tokens, rotary_dim / 2)`; angles are float32 products, as in transformers."""
        inverse = np.array(self.inverse, np.float32)
        shape = (tokens, len(inverse))
        cosines, sines = np.empty(shape, np.float32), np.empty(shape, np.float32)
        for start in range(0, tokens, ROWS):
            rows = slice(start, min(start + ROWS, tokens))
            angles = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] * inverse
            cosine, sine = cosine_and_sine(angles.astype(np.float64))
            cosines[rows], sines[rows] = cosine * self.factor, sine * self.factor
        return cosines, sines


def cosine_and_sine(angles: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of float32 numbers from 0 to 2**24, within 2**-52: Cody and Waite's reduction, then Taylor's series."""
    quarters = np.rint(angles * (2 / math.pi))
    rest = angles
    for part in HALF_PI:
        rest = rest - quarters * part
    square = rest * rest
    cosine, sine = np.zeros_like(rest), np.zeros_like(rest)
    for term in reversed(range(TERMS)):
        sign = (-1) ** term
        cosine = cosine * square + sign / math.factorial(2 * term)
        sine = sine * square + sign / math.factorial(2 * term + 1)
    sine = sine * rest
    quarter = quarters.astype(np.int64) % 4
    turned = quarter % 2 == 1
    return (
        np.where(turned, sine, cosine) * np.where((quarter == 1) | (quarter == 2), -1.0, 1.0),
        np.where(turned, cosine, sine) * np.where(quarter >= 2, -1.0, 1.0),
    )


def looked_up(rotaries: Mapping[str, Rotary], tokens: int) -> Any:
    """A module in place of a model's rotary embedding that looks up what it is for positions below `tokens`."""
    import torch
    from torch import nn

    tables = {kind: [torch.from_numpy(part) for part in rotary.table(tokens)] for kind, rotary in rotaries.items()}

    class Lookup(nn.Module):
        def forward(self, x: Tensor, position_ids: Tensor, layer_type: str = facts.ONLY_ROPE) -> tuple[Tensor, ...]:
            """Cosines and sines `(batch, tokens, rotary_dim)` in the dtype of `x`, each half of it the table's."""
            found = (part.to(x.device)[position_ids].to(x.dtype) for part in tables[layer_type])
            return tuple(torch.cat([part, part], -1) for part in found)

    return Lookup()


def rotaries_of(config: Any, trust_remote_code: bool = False) -> dict[str, Rotary]:
    """The rotary embeddings of a model, by the type of layer as in `facts.ropes`; none where it has another kind."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    module: Any = getattr(model.base_model, "rotary_emb", None)
    if getattr(module, "config", None) is None:
        return {}
    made = type(module)(config)  # its frequencies are computed where it is made
    found = {}
    for kind in facts.ropes(config):
        prefix = f"{kind}_" if kind else ""
        inverse = getattr(made, f"{prefix}inv_freq", None)
        if inverse is None:
            return {}
        found[kind] = Rotary(tuple(inverse.double().tolist()), float(getattr(made, f"{prefix}attention_scaling", 1.0)))
    return found


def tensors_of(rotaries: Mapping[str, Rotary]) -> dict[str, Tensor]:
    """What a file of them holds, by `kind|part`."""
    import torch

    found = {}
    for kind, rotary in rotaries.items():
        found[f"{kind}|inverse"] = torch.tensor(rotary.inverse, dtype=torch.float32)
        found[f"{kind}|factor"] = torch.tensor([rotary.factor], dtype=torch.float64)
    return found


def read_rotaries(path: Path) -> dict[str, Rotary]:
    """The inverse of `tensors_of`, for a file. InputError where it is damaged or something else."""
    from records.errors import InputError
    from supernet.files import read_tensors

    tensors, _ = read_tensors(path)
    try:
        kinds = [name.removesuffix("|inverse") for name in tensors if name.endswith("|inverse")]
        return {
            kind: Rotary(tuple(tensors[f"{kind}|inverse"].double().tolist()), tensors[f"{kind}|factor"].item())
            for kind in kinds
        }
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{path} is damaged ({error}); copy the supernet again or train it again") from None
