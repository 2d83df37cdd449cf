"""Which bytes of a GGUF file are which tensor: what a delta between two packages copies or carries whole."""

from __future__ import annotations

from pathlib import Path

from planner.runtimes.base import Piece
from planner.runtimes.llamacpp.safety import SIZES
from supernet.sources.gguf_file import read_head


def pieces(path: Path, size: int) -> tuple[Piece, ...]:
    """Of a file of `size` bytes that `safety.check` let pass: its metadata, which all subnets share, its list of
    tensors, and each of them. What fills up to the next one has no name."""
    head = read_head(path, SIZES)
    found = [Piece("", 0, head.table), Piece("", head.table, head.start - head.table)]
    at = head.start
    for name, tensor in head.tensors.items():
        if tensor.offset > at:
            found.append(Piece("", at, tensor.offset - at))
        found.append(Piece(name, tensor.offset, tensor.bytes))
        at = tensor.offset + tensor.bytes
    return (*found, Piece("", at, size - at)) if at < size else tuple(found)
