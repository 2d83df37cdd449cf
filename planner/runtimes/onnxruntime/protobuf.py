"""The fields of a serialized protobuf message, read without a schema.

`run` looks at a graph before it loads it. The onnx library would stay in its memory for as long as it serves, 13 MB
that no plan counts; this is what is needed of it. Every occurrence of a field is seen, where a parser with a schema
keeps the last: what is refused for one of them cannot hide behind another.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) in order: an integer, or the bytes of a text, a message or packed numbers.

    ValueError where `data` is not a message.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind not in (FIXED64, BYTES, FIXED32):
            raise ValueError(f"wire type {kind} at byte {at}")
        size = 8 if kind == FIXED64 else 4
        if kind == BYTES:
            size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError(f"field {number} ends beyond the message")
        yield number, data[at : at + size]
        at += size


def within(data: memoryview, *path: int) -> Iterator[int | memoryview]:
    """Every value at `path`, the numbers of fields one inside the other."""
    for number, value in fields(data):
        if number != path[0]:
            continue
        if len(path) == 1:
            yield value
        elif isinstance(value, memoryview):
            yield from within(value, *path[1:])


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a number ends beyond the message")
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
