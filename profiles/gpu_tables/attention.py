"""Attention on a GPU as it was measured: of whole prompts, and of one token of each sequence with what is cached.

A kernel takes the heads of keys and values of all sequences side by side, so `batch` sequences of `kv` heads are as
many of `kv / r` heads in `r` times the sequences: that is how numbers of heads are looked up which nobody measured.
A cache is measured warm where the GPU's own holds it, and a layer's is not when its turn comes: no token takes less
than reading it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from profiles.gpu_tables.lattice import Lattice
from profiles.gpu_tables.package import Columns, stacked
from profiles.gpu_tables.products import MODELLED, REMEMBERED
from profiles.kernels import INTERPOLATED, KernelEstimate

BFLOAT16, FP8 = "bfloat16", "fp8"
WIDTHS = {BFLOAT16: 2, FP8: 1}


@dataclass(frozen=True)
class Heads:
    """Heads of queries and of keys and values, of so many values each."""

    queries: int
    keys: int
    values: int


Kind = tuple[str, int, int]
"""The cache's type, the values of a head, the heads of keys."""


class Attention:
    """Of one GPU. The lattices have axes batch, heads of queries, and tokens."""

    def __init__(self, lattices: Mapping[Kind, Lattice], reading_ms: Callable[[float], float], spread: float) -> None:
        self._lattices = lattices
        self._reading_ms = reading_ms
        self._spread = spread
        self.ms = lru_cache(REMEMBERED)(self._ms)

    def one_token(self, batch: int, heads: Heads, tokens: int, cache: str) -> KernelEstimate:
        """Of each of `batch` sequences that have `tokens` in the cache, in one layer."""
        warm, known = self.ms(batch, heads, tokens, cache)
        cold = self._reading_ms(2.0 * batch * tokens * heads.keys * heads.values * WIDTHS[cache])
        basis = INTERPOLATED if known and cold <= warm * (1 + self._spread) else MODELLED
        return KernelEstimate(max(warm, cold), self._spread, basis)

    def prompt(self, batch: int, heads: Heads, tokens: int, cache: str, window: int | None) -> KernelEstimate:
        """Of `batch` prompts of `tokens`, in one layer, of which a token sees at most `window`."""
        ms, known = self.ms(batch, heads, tokens, cache)
        seen = 1.0
        if window is not None and window < tokens:  # pairs inside the window among all
            seen = (window * tokens - window * (window - 1) / 2) / (tokens * (tokens + 1) / 2)
        return KernelEstimate(ms * seen, self._spread, INTERPOLATED if known and seen == 1 else MODELLED)

    def _ms(self, batch: int, heads: Heads, tokens: int, cache: str) -> tuple[float, bool]:
        """Milliseconds, and whether times around were measured."""
        kept = cache if any(kind[0] == cache for kind in self._lattices) else BFLOAT16
        sizes = sorted({values for name, values, _ in self._lattices if name == kept})
        values = min(sizes, key=lambda size: abs(np.log(size / heads.values)))
        keys, parts = self._like(kept, values, heads)
        point = (max(1.0, batch * parts * heads.values / values), heads.queries / parts, float(tokens))
        lattice = self._lattices[kept, values, keys]
        known = (kept, values) == (cache, heads.values) and lattice.covers(*point)
        return lattice.at(*point), known

    def _like(self, cache: str, values: int, heads: Heads) -> tuple[int, float]:
        """The heads of keys that are looked up, and the number of such sequences in one: where it comes out even, as
        many heads as were measured with these queries."""
        measured = sorted(
            (keys for name, size, keys in self._lattices if (name, size) == (cache, values)), reverse=True
        )
        for keys in measured:
            queries = self._lattices[cache, values, keys].axes[1]
            if heads.keys % keys == 0 and queries[0] <= heads.queries * keys / heads.keys <= queries[-1]:
                return keys, heads.keys / keys
        return measured[-1], heads.keys / measured[-1]


def lattices(columns: Columns, tokens: str) -> dict[Kind, Lattice]:
    """Of a file of attention; `tokens` is the column that counts those which are seen, less one where it is `step`."""
    points = stacked(columns, ("batch_size", "num_heads", tokens)) + (0, 0, int(tokens == "step"))
    kinds = zip(*(columns[name] for name in ("kv_cache_dtype", "head_dim", "num_key_value_heads")), strict=True)
    whole = columns["window_size"] == 0 if "window_size" in columns else np.ones(len(points), bool)
    places: dict[Kind, list[int]] = {}
    for i, (cache, values, keys) in enumerate(kinds):
        if whole[i] and cache in WIDTHS:
            places.setdefault((str(cache), int(values), int(keys)), []).append(i)
    return {kind: Lattice(points[rows], columns["latency"][rows]) for kind, rows in places.items()}
