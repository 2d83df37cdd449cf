"""Packages with random codes, of any shape and mix of types: what serving one costs depends on its bytes alone.

The file is laid out as an exported one: metadata, a vocabulary of the true size, the tensors. Tokens and merges are
made up, with the lengths that tokens have.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from planner.runtimes.caches import FLOAT16
from planner.runtimes.llamacpp.formats import F32, Q2_K, Q3_K, Q4_1, Q4_K, Q5_1, Q5_K, Q6_K, TensorType
from planner.runtimes.llamacpp.header import FLOAT32, INT32, STRING, UINT32, Entry, Stored, head, padded
from planner.runtimes.llamacpp.serving import WEIGHTS, Serving
from planner.runtimes.llamacpp.tensors import tensors_of
from planner.runtimes.shapes import Shape
from supernet.space import Subnet

SCALE = np.float16(0.004)
TOKEN_LETTERS = 7  # of a token that is no single byte
NORMAL = 1  # of the kinds of tokens
# Of K types: where a block's float16 numbers are, and what each of them is in SCALEs, so that weights of random whole
# numbers are as large as those of other types and around zero.
K_FLOATS: dict[TensorType, tuple[tuple[int, float], ...]] = {
    Q2_K: ((80, 1 / 8), (82, 1.5 / 8)), Q3_K: ((108, 1 / 18),), Q4_K: ((0, 1 / 32), (2, 7.5 / 32)),
    Q5_K: ((0, 1 / 32), (2, 15.5 / 32)), Q6_K: ((208, 1 / 74),),
}  # fmt: skip
STRETCH_BLOCKS = 2**20  # that are drawn at a time


def write(
    shape: Shape, subnet: Subnet, context: int, threads: int | None, folder: Path, seed: int = 0,
    kv_type: str = FLOAT16.name,
) -> Path:  # fmt: skip
    """A package in the new `folder`, which is returned."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    laid = stored(shape, subnet)
    with open(folder / WEIGHTS, "wb") as file:
        file.write(head(metadata(shape), laid))
        for tensor in laid:
            for part in _random(tensor.type, tensor.bytes, rng):
                file.write(part)
            file.write(bytes(padded(tensor.bytes) - tensor.bytes))
    Serving(context, threads, (shape.vocabulary - 1,), kv_type).save(folder)
    return folder


def stored(shape: Shape, subnet: Subnet) -> list[Stored]:
    return [tensor.stored(subnet) for tensor in tensors_of(shape.spec())]


def metadata(shape: Shape) -> list[Entry]:
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    singles = letters[: min(256, shape.vocabulary)]
    rng = np.random.default_rng(0)
    longer = rng.integers(0, 26, (shape.vocabulary - len(singles), TOKEN_LETTERS))
    words = [
        f"{chr(97 + i % 26)}{''.join(chr(97 + c) for c in word)}{i}"[: TOKEN_LETTERS + 4]
        for i, word in enumerate(longer.tolist())
    ]
    tokens = singles + words
    merges = [f"{word[:3]} {word[3:]}" for word in words]
    numbers = {
        "block_count": shape.layers, "context_length": shape.max_context, "embedding_length": shape.hidden,
        "feed_forward_length": shape.feed_forward, "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads, "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim, "rope.dimension_count": shape.head_dim,
        "vocab_size": shape.vocabulary,
    }  # fmt: skip
    return [
        Entry("general.architecture", STRING, "llama"),
        Entry("general.name", STRING, shape.name),
        *(Entry(f"llama.{key}", UINT32, value) for key, value in numbers.items()),
        Entry("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        Entry("llama.rope.freq_base", FLOAT32, 1e4),
        Entry("tokenizer.ggml.model", STRING, "gpt2"),
        Entry("tokenizer.ggml.pre", STRING, "default"),
        Entry("tokenizer.ggml.tokens", STRING, tokens),
        Entry("tokenizer.ggml.token_type", INT32, [NORMAL] * len(tokens)),
        Entry("tokenizer.ggml.merges", STRING, merges),
        Entry("tokenizer.ggml.eos_token_id", UINT32, shape.vocabulary - 1),
    ]


def _random(kind: TensorType, size: int, rng: np.random.Generator) -> Iterator[bytes]:
    """`size` bytes: blocks of random codes around zero, each with the scale SCALE; norms are ones."""
    if kind is F32:
        yield np.ones(size // 4, "<f4").tobytes()
        return
    blocks = size // kind.block_bytes
    for start in range(0, blocks, STRETCH_BLOCKS):
        found = rng.integers(0, 256, (min(STRETCH_BLOCKS, blocks - start), kind.block_bytes), np.uint8)
        for at, share in K_FLOATS.get(kind, ((0, 1.0),)):
            found[:, at : at + 2] = np.frombuffer(np.float16(SCALE * share).tobytes(), np.uint8)
        if kind in (Q4_1, Q5_1):
            low = np.float16(-SCALE * (8 if kind is Q4_1 else 16))
            found[:, 2:4] = np.frombuffer(low.tobytes(), np.uint8)
        yield found.tobytes()
