"""The head of a GGUF file, version 3: what the model is, and where each of its tensors lies.

Nothing in it depends on the choices but the numbers of types and offsets, which take the same bytes whatever they are:
so its size is known before there are weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from planner.runtimes.llamacpp.formats import TensorType

MAGIC, VERSION = b"GGUF", 3
ALIGNMENT = 32  # bytes: where tensors begin, unless a file says otherwise
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # numbers of what a value is
_FORMS = {UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?"}

Value = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]


@dataclass(frozen=True)
class Entry:
    """One key of the metadata. `kind` is the value's, or its members' where it is a list."""

    key: str
    kind: int
    value: Value


@dataclass(frozen=True)
class Stored:
    """A tensor as the file has it: `shape` with the longest stride first, as torch counts."""

    name: str
    shape: tuple[int, ...]
    type: TensorType

    @property
    def bytes(self) -> int:
        """Without what fills up to the next tensor."""
        rows = 1
        for count in self.shape[:-1]:
            rows *= count
        return rows * self.type.row_bytes(self.shape[-1])


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def head(entries: Sequence[Entry], tensors: Sequence[Stored]) -> bytes:
    """All bytes before the first tensor's."""
    parts = [struct.pack("<4sIQQ", MAGIC, VERSION, len(tensors), len(entries))]
    parts += [_text(entry.key) + _value(entry) for entry in entries]
    offset = 0
    for tensor in tensors:
        counts = tensor.shape[::-1]  # GGML counts the fastest dimension first
        parts.append(_text(tensor.name) + struct.pack(f"<I{len(counts)}Q", len(counts), *counts))
        parts.append(struct.pack("<IQ", tensor.type.number, offset))
        offset += padded(tensor.bytes)
    whole = b"".join(parts)
    return whole + bytes(padded(len(whole)) - len(whole))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(entry: Entry) -> bytes:
    if not isinstance(entry.value, list):
        return struct.pack("<I", entry.kind) + _one(entry.kind, entry.value)
    members = b"".join(_one(entry.kind, member) for member in entry.value)
    return struct.pack("<IIQ", ARRAY, entry.kind, len(entry.value)) + members


def _one(kind: int, value: int | float | bool | str) -> bytes:
    return _text(value) if isinstance(value, str) else struct.pack(f"<{_FORMS[kind]}", value)
