"""How a compressed-tensors folder holds a subnet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.runtimes.bitstream import pack
from planner.runtimes.folder_writing import Layout
from planner.runtimes.model_folder import float16
from planner.runtimes.source import FoldedMatrix, dequantized
from planner.runtimes.vllm import safety, tensors
from planner.runtimes.vllm.holding import ties
from planner.runtimes.vllm.quantization import quantization_config
from supernet.facts import stored_name
from supernet.space import Choice, Subnet
from supernet.spec import EMBEDDING, ModelSpec, UnitSpec

ROWS = 4096  # of an embedding that is made float at once


def arrays(unit: UnitSpec, name: str, folded: FoldedMatrix, choice: Choice) -> Iterator[tuple[str, NDArray[Any]]]:
    """The tensors of one matrix: of an embedding the weights themselves, rounded to float16 once."""
    if unit.role != EMBEDDING:
        yield from packed(name, folded, choice)
        return
    found = np.empty(np.asarray(folded.codes).shape, "<f2")
    for start in range(0, len(found), ROWS):
        rows = slice(start, start + ROWS)
        found[rows] = float16(name, dequantized(folded, rows))
    yield "weight", found


def packed(name: str, folded: FoldedMatrix, choice: Choice) -> Iterator[tuple[str, NDArray[Any]]]:
    """compressed-tensors counts codes and zeros from the middle and adds it back as it packs, so what is packed are the
    codes and zeros as they are here; zeros are packed over rows."""
    codes, zeros = np.asarray(folded.codes, np.uint8), np.asarray(folded.zero, np.uint8)
    if choice.format.symmetric and (zeros != 2 ** (choice.bits - 1)).any():
        raise ValueError(f"the zeros of {choice} are at the middle, those of {name} are not")
    yield "weight_packed", pack(codes, choice.bits).view("<i4")
    yield "weight_scale", float16(f"the scales of {name}", folded.scale)
    yield "weight_shape", np.array(codes.shape, "<i8")
    if not choice.format.symmetric:
        yield "weight_zero_point", pack(np.ascontiguousarray(zeros.T), choice.bits).view("<i4").T


def said(config: Mapping[str, Any], spec: ModelSpec, subnet: Subnet) -> dict[str, Any]:
    return {"quantization_config": quantization_config(spec, subnet)}


LAYOUT = Layout("vllm", tensors.PARTS, tensors.tensors, arrays, said, safety.shapes, ties, stored_name)
