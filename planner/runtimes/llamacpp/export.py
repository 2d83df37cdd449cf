"""A subnet as one GGUF file, with what other programs need beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.runtimes.base import Progress
from planner.runtimes.caches import CacheType
from planner.runtimes.llamacpp import kpacking, metadata, modelfile, packing, tensors
from planner.runtimes.llamacpp.formats import K_TYPES, type_of
from planner.runtimes.llamacpp.header import head, padded
from planner.runtimes.llamacpp.serving import CACHES, WEIGHTS, Serving
from planner.runtimes.llamacpp.tensors import FREQUENCIES, LONG, SHORT, Tensor
from planner.runtimes.source import WeightSource
from planner.runtimes.tokenizer_files import write_tokenizer
from planner.tokens import stop_ids
from records.errors import InputError
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec


def write_model(
    files: WeightSource,
    subnet: Subnet,
    context: int,
    threads: int | None,
    folder: Path,
    progress: Progress | None = None,
    cache: CacheType = CACHES[0],
    gpu_layers: int | None = None,
) -> None:
    """Write model.gguf, how it is served, the tokenizer and a Modelfile into the existing `folder`. The same subnet
    gives the same bytes.

    InputError where the model is none that llama.cpp computes alike.
    """
    from supernet.mapped import give_back_pages

    spec, model_dir = files.spec, files.model_dir
    found = tensors.tensors_of(spec)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(head(metadata.entries(spec, model_dir), [tensor.stored(subnet) for tensor in found]))
        for done, data in enumerate(_data(files, subnet, found)):
            file.write(data)
            file.write(bytes(padded(len(data)) - len(data)))
            give_back_pages()
            if progress:
                progress("writing weights", (done + 1) / len(found))
    write_tokenizer(model_dir, context, folder, files.trusted)
    stops = stop_ids(model_dir, folder, spec.vocab_size)
    Serving(context, threads, tuple(stops), cache.name, gpu_layers).save(folder)
    modelfile.write(folder, stops, context, gpu_layers)
    _check_size(spec, subnet, model_dir, folder)


def _data(files: WeightSource, subnet: Subnet, found: tuple[Tensor, ...]) -> Iterator[bytes]:
    """The bytes of each tensor."""
    floats = files.float_tensors()
    tables = _rope_tables(files, found)
    for tensor in found:
        if tensor.unit is not None:
            rows: NDArray[Any] = _matrix(files, tensor, subnet[tensor.unit.name])
        elif tensor.source:
            rows = np.asarray(floats[tensor.source], "<f4") + np.float32(tensor.offset)
        else:
            rows = tables[tensor.name]
        if len(rows) != tensor.shape[0]:
            raise InputError(f"{tensor.source} must have {tensor.shape[0]} rows, got {len(rows)}")
        yield np.ascontiguousarray(in_pairs(rows, tensor.heads) if tensor.heads else rows).tobytes()


def _matrix(files: WeightSource, tensor: Tensor, choice: Choice) -> NDArray[np.uint8]:
    found = [_rows(files, linear.name, choice) for linear in tensor.linears]
    return found[0] if len(tensor.shape) == 2 else np.stack(found)


def _rows(files: WeightSource, linear: str, choice: Choice) -> NDArray[np.uint8]:
    """A matrix in the blocks of its type."""
    weight, kind = files.folded(linear, choice), type_of(choice)
    if kind in K_TYPES:
        return kpacking.rows_of(kind, weight.codes, weight.sides, linear)
    return packing.rows_of(kind, weight.codes, weight.scale, weight.zero, linear)


def in_pairs(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of each head from the order in which halves rotate to that in which neighbours do."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _rope_tables(files: WeightSource, found: tuple[Tensor, ...]) -> Mapping[str, NDArray[np.float32]]:
    """What each frequency is divided by: of what the model computed when its training ended, not of this machine."""
    names = {tensor.name for tensor in found if not tensor.source}
    if not names:
        return {}
    config = metadata.read_config(files.model_dir)
    rope = metadata.settings_of(config)
    if FREQUENCIES in names:
        (rotary,) = files.rotaries().values()
        inverse = np.array(rotary.inverse, np.float64)
        plain = float(rope["rope_theta"]) ** -(np.arange(len(inverse)) / len(inverse))
        return {FREQUENCIES: (plain / inverse).astype("<f4")}
    return {LONG: np.array(rope["long_factor"], "<f4"), SHORT: np.array(rope["short_factor"], "<f4")}


def _check_size(spec: ModelSpec, subnet: Subnet, model_dir: Path, folder: Path) -> None:
    """The plan's bytes are a promise: a file that needs others is an error here, not a surprise later."""
    promised = sum(tensors.unit_bytes(unit, subnet[unit.name]) for unit in spec.units)
    promised += tensors.float_bytes(spec) + metadata.head_bytes(spec, model_dir)
    written = (folder / WEIGHTS).stat().st_size
    if written != promised:
        raise InputError(f"{WEIGHTS} must have the planned size, got {written} bytes and planned {promised}")
