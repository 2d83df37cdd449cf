"""A subnet as a Hugging Face folder, as a runtime's layout says. The same subnet gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from planner.runtimes.base import Progress
from planner.runtimes.folder_safety import Shapes
from planner.runtimes.model_folder import CONFIG, float16, write_description, write_index
from planner.runtimes.source import FoldedMatrix, WeightSource
from planner.runtimes.tensor_file import WEIGHTS, Tensor, TensorFile, head_bytes
from records.reading import read_foreign
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec, UnitSpec
from supernet.ties import Groups, tied, together


@dataclass(frozen=True)
class Layout:
    """How `runtime` holds a subnet: the `tensors` of a unit, at most so many `parts` of a matrix.

    `arrays` are a unit's matrix of that name as (part, values), in the order of its tensors. `said` is what the model's
    own config, the spec and the subnet make of the folder's config; None takes a key away. `shapes` reads both back.
    `named` is what the file calls a tensor, of an architecture.
    """

    runtime: str
    parts: int
    tensors: Callable[[UnitSpec, Choice], tuple[Tensor, ...]]
    arrays: Callable[[UnitSpec, str, FoldedMatrix, Choice], Iterator[tuple[str, NDArray[Any]]]]
    said: Callable[[Mapping[str, Any], ModelSpec, Subnet], dict[str, Any]]
    shapes: Shapes
    ties: Callable[[ModelSpec], Groups] = lambda spec: ()
    named: Callable[[str, str], str] = lambda name, architecture: name


def write_folder(
    layout: Layout, files: WeightSource, subnet: Subnet, context: int, folder: Path, progress: Progress | None = None
) -> None:
    """Write the weights, both configs and the tokenizer into the existing, empty `folder`."""
    from supernet.mapped import give_back_pages

    spec, floats = tied(files.spec, layout.ties(files.spec)), files.float_tensors()
    subnet = together(subnet, spec, layout.runtime)
    tensors = [tensor for unit in spec.units for tensor in layout.tensors(unit, subnet[unit.name])]
    tensors += [Tensor(name, "F16", tuple(value.shape)) for name, value in floats.items()]

    def named(name: str) -> str:
        return layout.named(name, spec.architecture)

    tensors = [replace(tensor, name=named(tensor.name)) for tensor in tensors]
    with TensorFile(folder / WEIGHTS, tensors, head_bytes(spec, layout.parts)) as file:
        for done, unit in enumerate(spec.units):
            choice = subnet[unit.name]
            for linear in unit.linears:
                for part, array in layout.arrays(unit, linear.name, files.folded(linear.name, choice), choice):
                    file.write(named(f"{linear.name}.{part}"), array)
                give_back_pages()
            if progress:
                progress("writing weights", (done + 1) / len(spec.units))
        for name, value in floats.items():
            file.write(named(name), float16(name, value))
    write_index(folder, tensors)
    said = layout.said(read_foreign(files.model_dir / CONFIG), spec, subnet)
    write_description(files.model_dir, spec, context, folder, said, files.trusted)
