"""How an mlx-lm folder holds a subnet.

Scales and biases are float16, in which MLX then computes. A scale of the symmetric grid is exact in it and so is its
bias, a power of two times the scale; of the other grid both are rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.runtimes.bitstream import pack
from planner.runtimes.folder_writing import Layout
from planner.runtimes.mlx import safety, tensors
from planner.runtimes.mlx.description import changes
from planner.runtimes.model_folder import float16
from planner.runtimes.source import FoldedMatrix
from supernet.space import Choice
from supernet.spec import UnitSpec


def packed(unit: UnitSpec, name: str, folded: FoldedMatrix, choice: Choice) -> Iterator[tuple[str, NDArray[Any]]]:
    """The tensors of one matrix: weight = code * scale + bias, with bias = -zero * scale."""
    scale, zero = np.asarray(folded.scale, np.float32), np.asarray(folded.zero, np.float32)
    half = float16(f"the scales of {name}", scale)
    yield "weight", pack(np.asarray(folded.codes, np.uint8), choice.bits)
    yield "scales", half
    yield "biases", float16(f"the biases of {name}", -zero * half.astype(np.float32))


LAYOUT = Layout("mlx", tensors.PARTS, tensors.tensors, packed, changes, safety.shapes)
