"""Packages with random codes, of any shape and mix of types: what serving one costs depends on its bytes alone.

The file is laid out as an exported one: metadata, a vocabulary of the true size, the tensors. Tokens and merges are
made up, with the lengths that tokens have.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from planner.runtimes.llamacpp.formats import F32, Q4_1, Q5_1, TensorType, type_of
from planner.runtimes.llamacpp.serving import WEIGHTS, Serving
from planner.runtimes.shapes import Shape
from supernet.space import Subnet

ALIGNMENT = 32
SCALE = np.float16(0.004)
TOKEN_LETTERS = 7  # of a token that is no single byte
UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9  # GGUF's numbers of what a value is
NORMAL = 1  # of the kinds of tokens

Tensor = tuple[str, TensorType, tuple[int, int]]  # (rows, in_features)


def write(shape: Shape, subnet: Subnet, context: int, threads: int | None, folder: Path, seed: int = 0) -> Path:
    """A package in the new `folder`, which is returned."""
    folder.mkdir(parents=True)
    with open(folder / WEIGHTS, "wb") as file:
        write_gguf(file, metadata(shape), tensors(shape, subnet), seed)
    Serving(context, threads, (shape.vocabulary - 1,)).save(folder)
    return folder


def tensors(shape: Shape, subnet: Subnet) -> list[Tensor]:
    names = {
        "embed_tokens": "token_embd", "lm_head": "output", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
        "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    }  # fmt: skip
    found: list[Tensor] = [("output_norm.weight", F32, (1, shape.hidden))]
    for i in range(shape.layers):
        found += [(f"blk.{i}.{norm}_norm.weight", F32, (1, shape.hidden)) for norm in ("attn", "ffn")]
    for unit in shape.spec().units:
        kind = type_of(subnet[unit.name])
        for linear in unit.linears:
            name = names[linear.name.rpartition(".")[2]]
            prefix = "" if unit.layer is None else f"blk.{unit.layer}."
            found.append((f"{prefix}{name}.weight", kind, (linear.out_features, linear.in_features)))
    return found


def metadata(shape: Shape) -> list[tuple[str, int, Any]]:
    """(key, kind, value); of an array (key, kind of its members, list)."""
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
    return [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, shape.name),
        ("llama.block_count", UINT32, shape.layers),
        ("llama.context_length", UINT32, shape.max_context),
        ("llama.embedding_length", UINT32, shape.hidden),
        ("llama.feed_forward_length", UINT32, shape.feed_forward),
        ("llama.attention.head_count", UINT32, shape.heads),
        ("llama.attention.head_count_kv", UINT32, shape.kv_heads),
        ("llama.attention.key_length", UINT32, shape.head_dim),
        ("llama.attention.value_length", UINT32, shape.head_dim),
        ("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        ("llama.rope.dimension_count", UINT32, shape.head_dim),
        ("llama.rope.freq_base", FLOAT32, 1e4),
        ("llama.vocab_size", UINT32, shape.vocabulary),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "default"),
        ("tokenizer.ggml.tokens", STRING, tokens),
        ("tokenizer.ggml.token_type", INT32, [NORMAL] * len(tokens)),
        ("tokenizer.ggml.merges", STRING, merges),
        ("tokenizer.ggml.eos_token_id", UINT32, shape.vocabulary - 1),
    ]


def write_gguf(file: BinaryIO, values: list[tuple[str, int, Any]], laid: list[Tensor], seed: int) -> None:
    """A GGUF file, version 3, of these metadata and of tensors with random codes."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(laid), len(values))
    head += b"".join(_string(key) + _value(kind, value) for key, kind, value in values)
    offset = 0
    for name, kind, (rows, columns) in laid:
        head += _string(name) + (
            struct.pack("<IQ", 1, columns) if kind is F32 else struct.pack("<IQQ", 2, columns, rows)
        )
        head += struct.pack("<IQ", kind.number, offset)
        offset += _padded(rows * kind.row_bytes(columns))
    file.write(head + bytes(_padded(len(head)) - len(head)))
    rng = np.random.default_rng(seed)
    for _, kind, (rows, columns) in laid:
        size = rows * kind.row_bytes(columns)
        for part in _random(kind, rows * columns, rng):
            file.write(part)
        file.write(bytes(_padded(size) - size))


def _random(kind: TensorType, weights: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Blocks of random codes around zero, each with the scale SCALE; norms are ones."""
    if kind is F32:
        yield np.ones(weights, "<f4").tobytes()
        return
    blocks = weights // kind.block
    for start in range(0, blocks, 1 << 20):
        found = rng.integers(0, 256, (min(1 << 20, blocks - start), kind.block_bytes), np.uint8)
        found[:, :2] = np.frombuffer(SCALE.tobytes(), np.uint8)
        if kind in (Q4_1, Q5_1):
            low = np.float16(-SCALE * (8 if kind is Q4_1 else 16))
            found[:, 2:4] = np.frombuffer(low.tobytes(), np.uint8)
        yield found.tobytes()


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: Any) -> bytes:
    if isinstance(value, list):
        head = struct.pack("<IIQ", ARRAY, kind, len(value))
        return head + b"".join(map(_string, value)) if kind == STRING else head + np.array(value, "<i4").tobytes()
    if kind == STRING:
        return struct.pack("<I", kind) + _string(value)
    return struct.pack("<I" + ("f" if kind == FLOAT32 else "i" if kind == INT32 else "I"), kind, value)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
