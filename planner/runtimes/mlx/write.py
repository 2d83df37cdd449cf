"""A subnet as a folder that mlx-lm loads. The same subnet gives the same bytes.

Scales and biases are float16, in which MLX then computes. A scale of the symmetric grid is exact in it and so is its
bias, a power of two times the scale; of the other grid both are rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.runtimes.base import Progress
from planner.runtimes.bitstream import pack
from planner.runtimes.mlx import tensors as layout
from planner.runtimes.mlx.description import changes
from planner.runtimes.model_folder import CONFIG, float16, write_description, write_index
from planner.runtimes.source import FoldedMatrix, WeightSource
from planner.runtimes.tensor_file import WEIGHTS, Tensor, TensorFile, head_bytes
from records.reading import read_foreign
from supernet.space import Choice, Subnet


def write_model(
    files: WeightSource, subnet: Subnet, context: int, folder: Path, progress: Progress | None = None
) -> None:
    """Write the weights, both configs and the tokenizer into the existing, empty `folder`."""
    spec, floats, model_dir = files.spec, files.float_tensors(), files.model_dir
    tensors = [tensor for unit in spec.units for tensor in layout.tensors(unit, subnet[unit.name])]
    tensors += [Tensor(name, "F16", tuple(value.shape)) for name, value in floats.items()]
    with TensorFile(folder / WEIGHTS, tensors, head_bytes(spec, layout.PARTS)) as file:
        for done, unit in enumerate(spec.units):
            choice = subnet[unit.name]
            for linear in unit.linears:
                for part, array in packed(linear.name, files.folded(linear.name, choice), choice):
                    file.write(f"{linear.name}.{part}", array)
            if progress:
                progress("writing weights", (done + 1) / len(spec.units))
        for name, value in floats.items():
            file.write(name, float16(name, value))
    write_index(folder, tensors)
    said = changes(read_foreign(model_dir / CONFIG), spec, subnet)
    write_description(model_dir, spec, context, folder, said, files.trusted)


def packed(name: str, folded: FoldedMatrix, choice: Choice) -> Iterator[tuple[str, NDArray[Any]]]:
    """The tensors of one matrix: weight = code * scale + bias, with bias = -zero * scale."""
    scale, zero = np.asarray(folded.scale, np.float32), np.asarray(folded.zero, np.float32)
    half = float16(f"the scales of {name}", scale)
    yield "weight", pack(np.asarray(folded.codes, np.uint8), choice.bits)
    yield "scales", half
    yield "biases", float16(f"the biases of {name}", -zero * half.astype(np.float32))
