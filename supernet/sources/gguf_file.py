"""GGUF files: their metadata and where each tensor lies, read once and bounds-checked; several parts are one model.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from records.errors import InputError, MissingError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
ALIGNMENT = 32  # bytes, unless general.alignment says otherwise

# What is read of keys that all architectures have; those of one are looked at where they are asked for.
WHOLE = re.compile(r"split\.(no|count|tensors\.count)|tokenizer\.ggml\.\w+_token_id")
TEXT = re.compile(r"general\.(architecture|type)|tokenizer\.ggml\.(model|pre)|tokenizer\.chat_template")
TEXTS = re.compile(r"tokenizer\.ggml\.(tokens|merges)")
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of a file: its shape in torch's order, its GGML type, and where its bytes are."""

    file: Path
    shape: tuple[int, ...]
    kind: int
    offset: int
    bytes: int

    def part(self, number: int) -> GGUFTensor:
        """One of the matrices that a tensor of three dimensions holds."""
        size = self.bytes // self.shape[0]
        return replace(self, shape=self.shape[1:], offset=self.offset + number * size, bytes=size)

    def floats(self) -> np.ndarray[Any, Any]:
        """The weights in float32, read anew: nothing of the file stays in memory."""
        from gguf import GGMLQuantizationType, dequantize
        from gguf.quants import quant_shape_to_byte_shape

        kind = GGMLQuantizationType(self.kind)
        raw = np.fromfile(self.file, np.uint8, self.bytes, offset=self.offset)
        rows = raw.reshape(quant_shape_to_byte_shape(self.shape, kind))
        return np.asarray(dequantize(rows, kind), dtype=np.float32).reshape(self.shape)


@dataclass(frozen=True)
class Head:
    """What one file says before its tensors' values; `table` is the byte where the list of tensors begins, `start` that
    from which their offsets count."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]
    table: int
    start: int


@dataclass(frozen=True)
class GGUF:
    """A model's GGUF files: the metadata of the first, and the tensors of all."""

    files: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]


def read_gguf(path: Path) -> GGUF:
    """The whole model that `path` is, or is a part of. InputError names a part that is missing, or what is damaged."""
    files = _parts(path)
    first = read_head(files[0])
    metadata, tensors = first.metadata, dict(first.tensors)
    count = metadata.get("split.count", 1)
    if count != len(files) and count > 1:
        raise InputError(
            f"{path} is one of {count} parts, and its name does not say where the others are; "
            f"give the parts their names back, such as model-00001-of-{count:05}.gguf"
        )
    for number, part in enumerate(files[1:], 1):
        read = read_head(part)
        further, more = read.metadata, read.tensors
        if further.get("split.no", number) != number or further.get("split.count", len(files)) != len(files):
            raise InputError(f"{part} is not part {number + 1} of {len(files)}, as its name says; copy it again")
        twice = next(iter(more.keys() & tensors.keys()), None)
        if twice is not None:
            raise InputError(f"{part} holds {twice} a second time; the parts do not belong together")
        tensors |= more
    expected = metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise InputError(f"{files[0]} says {expected} tensors, its parts have {len(tensors)}; copy all parts again")
    return GGUF(files, metadata, tensors)


def _parts(path: Path) -> tuple[Path, ...]:
    match = _PART.fullmatch(path.name)
    if match is None or int(match["count"]) < 2:
        return (path,)
    count = int(match["count"])
    parts = tuple(path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1))
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MissingError(f"{path} is one of {count} parts, {missing[0]}{more} is missing; put them in one folder")
    return parts


def read_head(path: Path, sizes: Mapping[int, tuple[int, int]] | None = None) -> Head:
    """The head of one file. `sizes` are the weights and the bytes of a block by the number of its GGML type; without
    them, those that the package gguf knows. InputError where the file is damaged or something else."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # an empty file cannot be mapped
        raise InputError(f"{path} is empty; copy it again") from None
    try:
        with mapped:
            return _Reader(path, mapped).read(sizes)
    except (struct.error, UnicodeDecodeError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(f"{path} is damaged or no GGUF file ({error}); copy it again") from None


def _check_type(key: str, value: Any) -> None:
    listed = isinstance(value, list) and all(isinstance(item, str) for item in value)
    rules = (
        (WHOLE, type(value) is int, "a whole number"),
        (TEXT, isinstance(value, str), "text"),
        (TEXTS, listed, "texts"),
    )
    for names, right, wanted in rules:
        if not right and names.fullmatch(key):
            raise ValueError(f"{key} is {str(value)[:60]!r} and not {wanted}")


def _known_sizes() -> dict[int, tuple[int, int]]:
    from gguf import GGML_QUANT_SIZES

    return {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}


class _Reader:
    """Reads one mapped file from its beginning. Every count is checked against the bytes that are left."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.place = 0

    def read(self, sizes: Mapping[int, tuple[int, int]] | None) -> Head:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.place = 4
        version, tensors, entries = self.scalars("IQQ")
        if version not in VERSIONS:
            raise ValueError(f"version {version}, known are {VERSIONS}")
        self.check(tensors, 24)
        self.check(entries, 13)
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self.string()
            if key in metadata:
                raise ValueError(f"{key} twice")
            metadata[key] = self.value(self.scalars("I")[0])
        if "general.architecture" not in metadata:
            raise ValueError("no general.architecture")
        for key, value in metadata.items():
            _check_type(key, value)
        table = self.place
        found, start = self.tensors(tensors, metadata.get("general.alignment", ALIGNMENT), sizes or _known_sizes())
        return Head(metadata, found, table, start)

    def tensors(
        self, count: int, alignment: Any, sizes: Mapping[int, tuple[int, int]]
    ) -> tuple[dict[str, GGUFTensor], int]:
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise ValueError(f"general.alignment is {alignment}")
        table = []
        for _ in range(count):
            name = self.string()
            (dimensions,) = self.scalars("I")
            if dimensions > MOST_DIMENSIONS:
                raise ValueError(f"{name} has {dimensions} dimensions")
            shape = self.scalars(f"{dimensions}Q")[::-1]  # GGML counts the fastest dimension first
            table.append((name, shape, *self.scalars("IQ")))
        start = -(-self.place // alignment) * alignment
        found: dict[str, GGUFTensor] = {}
        for name, shape, kind, offset in table:
            if kind not in sizes:
                raise ValueError(f"{name} has the GGML type {kind}, which is not known here")
            block, block_bytes = sizes[kind]
            values = math.prod(shape)
            if not shape or values % block or shape[-1] % block:
                raise ValueError(f"{name} of shape {shape} does not divide into blocks of {block}")
            first, last = start + offset, start + offset + values // block * block_bytes
            if last > len(self.data):
                raise ValueError(f"cut short: {name} ends at byte {last}, the file at {len(self.data)}")
            if name in found:
                raise ValueError(f"{name} twice")
            found[name] = GGUFTensor(self.path, shape, kind, first, last - first)
        return found, start

    def scalars(self, form: str) -> tuple[Any, ...]:
        form = "<" + form
        values = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return values

    def check(self, count: int, least_bytes: int) -> None:
        if count * least_bytes > len(self.data) - self.place:
            raise ValueError(f"cut short: {count} entries in {len(self.data) - self.place} bytes")

    def string(self) -> str:
        (length,) = self.scalars("Q")
        self.check(length, 1)
        text = self.data[self.place : self.place + length].decode("utf-8")
        self.place += length
        return text

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.scalars(SCALARS[kind])[0]
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"metadata of type {kind}")
        inner, count = self.scalars("IQ")
        if inner in SCALARS:
            self.check(count, struct.calcsize(SCALARS[inner]))
            return list(self.scalars(f"{count}{SCALARS[inner]}"))
        if inner != STRING:
            raise ValueError(f"an array of type {inner}")
        self.check(count, 8)
        return [self.string() for _ in range(count)]
