"""Which bytes of the weight file are which tensor: what a delta between two packages copies or carries whole."""

from __future__ import annotations

from collections.abc import Iterator

from planner.runtimes.base import Piece
from planner.runtimes.onnxruntime.protobuf import fields, within

_INITIALIZERS = (7, 5)  # of a model: the graph, and its tensors
_NAME, _EXTERNAL = 8, 13  # of a tensor
_KEY, _VALUE = 1, 2  # of an entry that says where its bytes are


def pieces(graph: memoryview, size: int) -> tuple[Piece, ...]:
    """The tensors of a weight file of `size` bytes in its order, and without names what lies between them.

    The graph is one that `safety.check` let pass. A second name for bytes that have one already (a table that is looked
    up and multiplied with) is left out.
    """
    found: list[Piece] = []
    at = 0
    for tensor in sorted(_tensors(graph), key=lambda piece: (piece.offset, -piece.bytes)):
        if tensor.offset < at or not tensor.bytes:
            continue
        if tensor.offset > at:
            found.append(Piece("", at, tensor.offset - at))
        found.append(tensor)
        at = tensor.offset + tensor.bytes
    return (*found, Piece("", at, size - at)) if at < size else tuple(found)


def _tensors(graph: memoryview) -> Iterator[Piece]:
    for tensor in within(graph, *_INITIALIZERS):
        if isinstance(tensor, memoryview):
            entries = (dict(fields(entry)) for entry in within(tensor, _EXTERNAL) if isinstance(entry, memoryview))
            place = {_text(entry[_KEY]): _text(entry[_VALUE]) for entry in entries}
            if place:
                name = "".join(_text(name) for name in within(tensor, _NAME))
                yield Piece(name, int(place["offset"]), int(place["length"]))


def _text(value: int | memoryview) -> str:
    return bytes(value).decode(errors="replace") if isinstance(value, memoryview) else ""
