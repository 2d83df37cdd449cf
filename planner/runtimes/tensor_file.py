"""One safetensors file whose size is known before a weight is: laid out, written tensor by tensor, and checked.

The tensors lie one after another without gaps, the widest types first and by name within a type, so that each starts
on a multiple of its own values' bytes. The header is padded with spaces to a length that depends on a model's shapes
and on no choice, which the format allows: the bytes of a unit are then those of its tensors, and a sum over the units
is the size on disk.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from planner.runtimes.base import Piece
from records.errors import InputError
from supernet.spec import ModelSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS = "model.safetensors"
ITEM_BYTES = {"I64": 8, "I32": 4, "U32": 4, "F32": 4, "F16": 2}
_NUMPY = {"I64": "<i8", "I32": "<i4", "U32": "<u4", "F32": "<f4", "F16": "<f2"}
METADATA = {"format": "pt"}  # what loaders ask a file for before they read it
MOST_HEADER_BYTES = 100_000_000  # the format's own limit
MOST_ENTRY_BYTES = 112  # of a header's entry beside its name: type, two dimensions of 10 digits, two offsets of 15
FLOATS_A_LAYER, FLOATS_BESIDE = 16, 8  # tensors that are never quantized, at most: norms and biases
FLOAT_NAME_BYTES = 64
_LENGTH_BYTES = 8  # the header's length stands before it


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file: its name, the format's name of its type, its shape."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.kind]


def head_bytes(spec: ModelSpec, parts: int) -> int:
    """Bytes before the first tensor of a model's file in which a quantized matrix is at most `parts` tensors."""
    floats = FLOATS_A_LAYER * spec.num_layers + FLOATS_BESIDE
    names = (linear.name for unit in spec.units for linear in unit.linears)
    room = sum(parts * (len(name) + MOST_ENTRY_BYTES) for name in names)
    room += floats * (FLOAT_NAME_BYTES + MOST_ENTRY_BYTES)
    return _LENGTH_BYTES + math.ceil(room / 8) * 8


class TensorFile(AbstractContextManager["TensorFile"]):
    """A file of these tensors, which are written in any order; its first tensor starts at `head`."""

    def __init__(self, path: Path, tensors: Iterable[Tensor], head: int) -> None:
        ordered = sorted(tensors, key=lambda tensor: (-ITEM_BYTES[tensor.kind], tensor.kind, tensor.name))
        ends = list(accumulate(tensor.bytes for tensor in ordered))
        self._places = {tensor.name: (tensor, end - tensor.bytes) for tensor, end in zip(ordered, ends, strict=True)}
        self._head = head
        self._missing = set(self._places)
        text = header(ordered)
        if len(text) > head - _LENGTH_BYTES:
            raise InputError(
                f"the header of {path.name} must fit the {head} bytes planned for it, got {len(text)}; "
                "the model has float tensors that bitfleet does not know of"
            )
        self._file: BinaryIO = path.open("wb")
        self._file.write((head - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "little") + text.ljust(head - _LENGTH_BYTES))
        self._file.truncate(head + (ends[-1] if ends else 0))

    def write(self, name: str, values: NDArray[Any]) -> None:
        import numpy as np

        tensor, offset = self._places[name]
        array = np.ascontiguousarray(values, _NUMPY[tensor.kind])
        if array.shape != tensor.shape:
            raise ValueError(f"{name} must have the shape {tensor.shape} that was laid out, got {array.shape}")
        self._file.seek(self._head + offset)
        self._file.write(array.data)
        self._missing.remove(name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        if error is None and self._missing:
            raise ValueError(f"{len(self._missing)} tensors were laid out and not written, {min(self._missing)} first")


def header(ordered: Iterable[Tensor]) -> bytes:
    """The JSON of tensors that lie one after another."""
    entries: dict[str, Any] = {"__metadata__": METADATA}
    start = 0
    for tensor in ordered:
        stop = start + tensor.bytes
        entries[tensor.name] = {"dtype": tensor.kind, "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    return json.dumps(entries, separators=(",", ":")).encode()


# --- a stranger's file --------------------------------------------------------------------------------------------


def read_layout(path: Path) -> tuple[int, tuple[Tensor, ...]]:
    """Where the first tensor starts, and the tensors in their order. ValueError, in one line, where the header is not
    one of whole tensors that fill the file in order and without gaps: nothing of what it says is believed."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or not 2 <= length <= min(MOST_HEADER_BYTES, size - _LENGTH_BYTES):
            raise ValueError(f"{path.name} must begin with the length of its header, got {length} of {size} bytes")
        raw = file.read(length)
    entries = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    if not isinstance(entries, dict):
        raise ValueError(f"the header of {path.name} must be an object")
    entries.pop("__metadata__", None)
    found = sorted((_entry(path.name, name, entry) for name, entry in entries.items()), key=lambda pair: pair[1])
    end = 0
    for tensor, start in found:
        if start != end:
            raise ValueError(f"{path.name} must hold tensors without gaps, {tensor.name!r:.80} starts at {start}")
        end += tensor.bytes
    if _LENGTH_BYTES + length + end != size:
        raise ValueError(f"{path.name} must end with its last tensor, got {size} bytes")
    return _LENGTH_BYTES + length, tuple(tensor for tensor, _ in found)


def _entry(file: str, name: str, entry: Any) -> tuple[Tensor, int]:
    """A tensor and where it starts after the header."""
    if not re.fullmatch(r"[A-Za-z0-9_.]{1,200}", name):
        raise ValueError(f"{file} may not name a tensor {name!r:.80}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{file} must say type, shape and place of {name}")
    kind, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if kind not in ITEM_BYTES:
        raise ValueError(f"{file} holds tensors of {', '.join(ITEM_BYTES)}, got {kind!r:.20} for {name}")
    if not (_sizes(shape) and len(shape) <= 2 and _sizes(place) and len(place) == 2):
        raise ValueError(f"{file} must say shape and place of {name} in whole numbers")
    tensor = Tensor(name, kind, tuple(shape))
    if place[1] - place[0] != tensor.bytes or not tensor.bytes:
        raise ValueError(f"{name} in {file} must have the bytes of its shape, got {place[1] - place[0]}")
    return tensor, place[0]


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**50 for size in value)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: ValueError for a key that is there twice, of which two readers may take two different ones."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object sets a key twice")
    return found


def pieces(path: Path) -> tuple[Piece, ...]:
    """The header, and each tensor of a checked file."""
    head, tensors = read_layout(path)
    starts = accumulate((tensor.bytes for tensor in tensors), initial=head)
    named = (Piece(tensor.name, start, tensor.bytes) for tensor, start in zip(tensors, starts, strict=False))
    return (Piece("", 0, head), *named)
