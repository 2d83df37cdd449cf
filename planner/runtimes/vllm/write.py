"""A subnet as a Hugging Face folder with packed weights. The same subnet gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.runtimes.base import Progress
from planner.runtimes.bitstream import pack
from planner.runtimes.model_folder import float16, write_description, write_index
from planner.runtimes.source import FoldedMatrix, WeightSource, dequantized
from planner.runtimes.tensor_file import WEIGHTS, Tensor, TensorFile, head_bytes
from planner.runtimes.vllm import tensors as layout
from planner.runtimes.vllm.holds import has_zeros, ties
from planner.runtimes.vllm.quantization import quantization_config
from supernet.space import Choice, Subnet
from supernet.spec import EMBEDDING
from supernet.ties import tied, together

ROWS = 4096  # of an embedding that is made float at once


def write_model(
    files: WeightSource, subnet: Subnet, context: int, folder: Path, progress: Progress | None = None
) -> None:
    """Write the weights, both configs and the tokenizer into the existing, empty `folder`."""
    spec, floats = tied(files.spec, ties(files.spec)), files.float_tensors()
    subnet = together(subnet, spec, "vllm")
    tensors = [tensor for unit in spec.units for tensor in layout.tensors(unit, subnet[unit.name])]
    tensors += [Tensor(name, "F16", tuple(value.shape)) for name, value in floats.items()]
    with TensorFile(folder / WEIGHTS, tensors, head_bytes(spec, layout.PARTS)) as file:
        for done, unit in enumerate(spec.units):
            choice = subnet[unit.name]
            for linear in unit.linears:
                folded = files.folded(linear.name, choice)
                if unit.role == EMBEDDING:
                    file.write(f"{linear.name}.weight", half(linear.name, folded))
                else:
                    for part, array in packed(linear.name, folded, choice):
                        file.write(f"{linear.name}.{part}", array)
            if progress:
                progress("writing weights", (done + 1) / len(spec.units))
        for name, value in floats.items():
            file.write(name, float16(name, value))
    write_index(folder, tensors)
    changes = {"quantization_config": quantization_config(spec, subnet)}
    write_description(files.model_dir, spec, context, folder, changes, files.trusted)


def packed(name: str, folded: FoldedMatrix, choice: Choice) -> Iterator[tuple[str, NDArray[Any]]]:
    """The tensors of one matrix. compressed-tensors counts codes and zeros from the middle and adds it back as it
    packs, so what is packed are the codes and zeros as they are here; zeros are packed over rows."""
    codes, zeros = np.asarray(folded.codes, np.uint8), np.asarray(folded.zero, np.uint8)
    if not has_zeros(choice) and (zeros != 2 ** (choice.bits - 1)).any():
        raise ValueError(f"the zeros of {choice} are at the middle, those of {name} are not")
    yield "weight_packed", pack(codes, choice.bits).view("<i4")
    yield "weight_scale", float16(f"the scales of {name}", folded.scale)
    yield "weight_shape", np.array(codes.shape, "<i8")
    if has_zeros(choice):
        yield "weight_zero_point", pack(np.ascontiguousarray(zeros.T), choice.bits).view("<i4").T


def half(name: str, folded: FoldedMatrix) -> NDArray[np.float16]:
    """The weights themselves, rounded to float16 once."""
    found = np.empty(np.asarray(folded.codes).shape, "<f2")
    for start in range(0, len(found), ROWS):
        rows = slice(start, start + ROWS)
        found[rows] = float16(name, dequantized(folded, rows))
    return found
