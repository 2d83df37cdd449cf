"""Mutations of files: of their bytes, and, for JSON, of the values in them."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**64, 10**40, -(10**40), 0.5, -0.5, 1e308, 1e-308, "", "x", "0",
    "int4g64", "int9g0", "int2g999999", "../../etc/passwd", "\x1b[2J", "\u202e", "\ud800", "a\nb", [], {}, [[]], [None],
    {"": None}, {"unit": "int4g64"}, ["a", 1, None], "9" * 5000,
)  # fmt: skip
TOKENS = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-1e999",
    b"9" * 400,
    b"nul",
    b'"\\ud800"',
    b"01",
    b"1.",
    b"{}}",
)
ENCODINGS = ("utf-16", "utf-8-sig", "latin-1", "utf-32", "cp037")
DEEP = 200_000


def mutated(data: bytes, rng: random.Random, is_json: bool) -> bytes:
    """One to three mutations of `data`."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        structural = is_json and rng.random() < 0.7
        data = (_of_values(data, rng) if structural else None) or _of_bytes(data, rng)
    return data


def _of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, repeats, insertions, odd tokens and other encodings."""
    raw = bytearray(data)
    start = rng.randrange(len(raw) + 1)
    end = min(len(raw), start + rng.choice((1, 2, 8, 64, 1024)))
    kind = rng.randrange(9)
    if kind <= 1 and raw:
        for _ in range(rng.choice((1, 1, 4, 32))):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del raw[start:]
    elif kind == 3:
        del raw[start:end]
    elif kind == 4:
        raw[start:start] = raw[start:end] * rng.choice((1, 2, 100))
    elif kind == 5:
        raw[start:end] = rng.randbytes(end - start)
    elif kind == 6:
        raw[start:end] = rng.choice(TOKENS)
    elif kind == 7:
        raw[start:end] = rng.choice((b"\xff" * 8, b"\x00" * 8, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80"))
    elif rng.random() < 0.5:
        return bytes(raw).decode("utf-8", "replace").encode(rng.choice(ENCODINGS), "replace")
    else:
        raw[start:start] = rng.choice((b"[", b'{"a":')) * rng.choice((70, 2000, DEEP))
    return bytes(raw)


def _of_values(data: bytes, rng: random.Random) -> bytes | None:
    """Values of other types, keys removed, renamed and twice, members doubled; None where this is no JSON any more."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    parent: Any = {"": value}
    key: Any = ""
    while isinstance(parent[key], (dict, list)) and parent[key] and rng.random() < 0.8:
        parent = parent[key]
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    at_top = key == "" and len(parent) == 1
    kind = rng.randrange(6)
    if kind <= 2 or at_top:
        parent[key] = rng.choice(ODD)
    elif kind == 3:
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[rng.randrange(len(parent))]))
    elif kind == 4:
        parent[rng.choice(("unknown", key + "x", ""))] = parent.pop(key)
    else:
        parent[key] = copy.deepcopy(parent[rng.choice(list(parent))])
    text = json.dumps(parent[""] if at_top else value)
    if rng.random() < 0.05 and "{" in text:  # a key twice
        text = text.replace("{", '{"name": 1, "name": [], ', 1)
    return text.encode("utf-8", "surrogatepass")
