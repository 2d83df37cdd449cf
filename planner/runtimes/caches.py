"""How a runtime may keep the keys and values of the tokens that a model has read: the KV cache's types, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from records.errors import InputError

EXACT_BITS = 16
"""A type of so many bits a value rounds less than a package does in any case; what fewer cost, only `verify` tells."""


@dataclass(frozen=True)
class CacheType:
    """`name` is the runtime's own word for it. So many `values` of a head lie in one block of `block_bytes`."""

    name: str
    values: int
    block_bytes: int

    @property
    def bits(self) -> float:
        """Of one value, with everything that a block holds."""
        return 8 * self.block_bytes / self.values

    @property
    def rounds(self) -> bool:
        """Whether it loses more than half-precision floats do."""
        return self.bits < EXACT_BITS

    def bytes_of(self, values: int) -> int:
        """Of `values` in whole blocks."""
        return -(-values // self.values) * self.block_bytes


FLOAT32, FLOAT16 = CacheType("f32", 1, 4), CacheType("f16", 1, 2)


AUTO = "auto"  # all types that there are; which one is decided with the weights


def caches_asked(asked: str | None, types: Sequence[CacheType], runtime: str) -> tuple[CacheType, ...]:
    """Those of a runtime's types that a workload lets it choose among, in the runtime's order. InputError where it has
    none of them."""
    if asked is None:
        return (cache_named(None, types, runtime),)
    names = asked.split(",")
    found = tuple(one for one in types if one.name in names or AUTO in names)
    return found or (cache_named(asked, types, runtime),)


def cache_named(name: str | None, types: Sequence[CacheType], runtime: str) -> CacheType:
    """The type of that name among those of a runtime; its own, the first of them, for None. InputError for others."""
    if name is None:
        return types[0]
    found = next((one for one in types if one.name == name), None)
    if found is None:
        known = ", ".join(one.name for one in types)
        raise InputError(f"{runtime} keeps a KV cache as {known}, got {name!r:.40}; give one of them to --kv-cache")
    return found
