"""Files with Q2_0 tensors as files that x86 has kernels for: the same numbers, held in Q4_0.

llama.cpp multiplies both by the same int8 activations, so what a model says is the same but for the order of sums. It
takes minutes a window in Q2_0 on x86, and seconds in Q4_0.

    Q2_0  w = (c - 1) d, 64 weights a block, four in a row in each byte, the first in the lowest bits
    Q4_0  w = (c - 8) d, 32 weights a block, the first 16 in the low halves of its bytes
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.runtimes.llamacpp.formats import Q2_0, Q4_0
from planner.runtimes.llamacpp.header import padded
from supernet.sources.gguf_file import read_head


def sizes() -> dict[int, tuple[int, int]]:
    """Weights and bytes of a block, by the number of its type."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): size for kind, size in GGML_QUANT_SIZES.items()} | {Q2_0.number: (Q2_0.block, Q2_0.block_bytes)}


def has_q2_0(file: Path) -> bool:
    return any(tensor.kind == Q2_0.number for tensor in read_head(file, sizes()).tensors.values())


def rewrite(file: Path, out: Path) -> None:
    """`file` with every Q2_0 tensor as Q4_0."""
    head, blocks = read_head(file, sizes()), sizes()
    table, offset = [], 0
    for name, tensor in head.tensors.items():
        kind = Q4_0.number if tensor.kind == Q2_0.number else tensor.kind
        counts = tensor.shape[::-1]
        block, block_bytes = blocks[kind]
        text = name.encode()
        table.append(struct.pack("<Q", len(text)) + text + struct.pack(f"<I{len(counts)}Q", len(counts), *counts))
        table.append(struct.pack("<IQ", kind, offset))
        offset += padded(int(np.prod(tensor.shape)) // block * block_bytes)
    with file.open("rb") as read, out.open("wb") as written:
        written.write(read.read(head.table) + b"".join(table))
        written.write(bytes(padded(written.tell()) - written.tell()))
        for tensor in head.tensors.values():
            read.seek(tensor.offset)
            data = read.read(tensor.bytes)
            if tensor.kind == Q2_0.number:
                data = in_q4_0(np.frombuffer(data, np.uint8).reshape(-1, Q2_0.block_bytes)).tobytes()
            written.write(data + bytes(padded(len(data)) - len(data)))


def in_q4_0(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blocks of Q2_0 `(n, 18)` as blocks of Q4_0 `(2 n, 18)` of the same weights."""
    scales = blocks[:, :2]
    codes = (blocks[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3).reshape(-1, 2, 2, 16) + 7
    pairs = (codes[:, :, 0] | codes[:, :, 1] << 4).astype(np.uint8)
    return np.concatenate([np.repeat(scales[:, None], 2, 1), pairs], -1).reshape(-1, Q4_0.block_bytes)
