"""safetensors files as memory that the system reads when it is asked for, and that can be given back at any time.

Whoever reads a large file tensor by tensor has all of it in memory in the end, unless pages go back meanwhile. What is
given back is read again when it is needed: nobody may write into these tensors.
"""

from __future__ import annotations

import json
import mmap
import struct
import weakref
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {  # in the order in which safetensors lays tensors out
    "I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "I32": torch.int32, "BF16": torch.bfloat16,
    "F16": torch.float16, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()  # a tensor holds its map, whoever opened the file


class MappedTensors:
    """The tensors of a safetensors file that was found sound."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        (length,) = struct.unpack_from("<Q", self.map)
        self.start = 8 + length
        self.header: dict[str, Any] = json.loads(self.map[8 : self.start])
        self.meta: dict[str, str] = self.header.pop("__metadata__", {})
        _maps.add(self.map)

    def keys(self) -> list[str]:
        return list(self.header)

    def metadata(self) -> dict[str, str]:
        return self.meta

    def get_tensor(self, name: str) -> Tensor:
        """KeyError where there is none of this name."""
        about = self.header[name]
        dtype, shape = DTYPES[about["dtype"]], about["shape"]
        count = prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.map, dtype=dtype, count=count, offset=self.start + about["data_offsets"][0]).view(
            shape
        )


def give_back_pages() -> None:
    """Drop the pages of all mapped files from memory, where the system takes such advice."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for one in list(_maps):
            one.madvise(mmap.MADV_DONTNEED)
