"""Products on a GPU of whose float kernels times were measured: of floats, and of packed weights by a model.

A product of `rows` vectors of `k` values by a matrix `(n, k)`.

**Floats** lie on the lattice of measured ones. There a product is called again and again, so that a small matrix stays
in the GPU's cache; a model's next matrix does not. So no product takes less than its bytes at the bandwidth that the
largest products reach.

**Packed weights** are modelled: what takes time is reading, multiplying, and going along `k`. They read as a float
product of as many bytes and few rows, with fewer columns; they multiply at the best rate that floats of the shape
reach, in tiles of 16 rows or more; and a kernel that does not split `k` takes a time for each step along it, however
few columns there are. The three overlap as a norm of power `overlap` does: the largest alone at infinity, their sum
at 1.
`benchmarks/gpu_tables.py` judges it by kernels of packed weights that were measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from profiles.gpu_tables.lattice import Lattice
from profiles.kernels import INTERPOLATED, KernelEstimate

MODELLED = "modelled"
FLOAT_BYTES = 2
LARGE = 8  # products of at least one part in so many of the largest tell the bandwidth: no cache holds them
TILE_ROWS = 16
REMEMBERED = 100_000  # products


@dataclass(frozen=True)
class PackedKernel:
    """What a kernel of packed weights is apart from the GPU: what it takes whatever its size is, and for each value of
    `k`; how its parts overlap."""

    start_ms: float
    step_ms: float = 0.0
    overlap: float = 2.0


@dataclass(frozen=True)
class Spreads:
    """The relative half-widths of products of floats and of packed weights."""

    floats: float
    packed: float


class Products:
    """Of one GPU; `floats` has axes rows, n and k. Packed weights are read at `packed_bytes_per_ms` at most."""

    def __init__(self, floats: Lattice, spreads: Spreads, packed_bytes_per_ms: float = math.inf) -> None:
        self._floats = floats
        self._spreads = spreads
        self.packed_bytes_per_ms = packed_bytes_per_ms
        self.float_ms = lru_cache(REMEMBERED)(self._float_ms)
        self._rate = lru_cache(REMEMBERED)(self._best_rate)

    @property
    def start_ms(self) -> float:
        """What the smallest product takes."""
        return self._floats.least_ms

    @cached_property
    def bytes_per_ms(self) -> float:
        """The bandwidth that the largest products of one row reach, the median of them."""
        rows, ns, ks = self._floats.axes
        shapes = [(n, k) for n in ns for k in ks if self._floats.covers(rows[0], n, k)]
        large = max(n * k for n, k in shapes) / LARGE
        rates = [
            FLOAT_BYTES * n * k / (self._floats.at(rows[0], n, k) - self.start_ms) for n, k in shapes if n * k >= large
        ]
        return float(np.median(rates))

    def reading_ms(self, size: float) -> float:
        """What no cache holds."""
        return self.start_ms + size / self.bytes_per_ms

    def floats(self, rows: float, n: float, k: float) -> KernelEstimate:
        warm, cold = self.float_ms(rows, n, k), self.reading_ms(FLOAT_BYTES * n * k)
        spread = self._spreads.floats
        known = cold <= warm * (1 + spread) and self._floats.covers(rows, n, k)
        return KernelEstimate(max(warm, cold), spread, INTERPOLATED if known else MODELLED)

    def packed(self, rows: float, n: float, k: float, size: float, kernel: PackedKernel) -> KernelEstimate:
        """Of weights that take `size` bytes with their scales."""
        parts = (*self.packed_parts(rows, n, k, size), kernel.step_ms * k)
        return KernelEstimate(kernel.start_ms + _norm(parts, kernel.overlap), self._spreads.packed, MODELLED)

    def packed_parts(self, rows: float, n: float, k: float, size: float) -> tuple[float, float]:
        """Milliseconds of reading the weights and of multiplying by them, each alone."""
        like = size / (FLOAT_BYTES * k)  # columns of floats
        reading = max(self.float_ms(min(rows, TILE_ROWS), like, k), self.reading_ms(size)) - self.start_ms
        return max(reading, size / self.packed_bytes_per_ms), 2 * tiled(rows) * n * k / self._rate(n, k)

    def _float_ms(self, rows: float, n: float, k: float) -> float:
        return self._floats.at(rows, n, k)

    def _best_rate(self, n: float, k: float) -> float:
        """Operations a millisecond."""
        return max(2 * rows * n * k / self._floats.at(rows, n, k) for rows in self._floats.axes[0])


def tiled(rows: float) -> float:
    """Rows that a kernel multiplies: a power of two, from the smallest tile of the tensor cores on."""
    return max(TILE_ROWS, 2 ** math.ceil(math.log2(rows)))


def _norm(parts: tuple[float, ...], power: float) -> float:
    largest = max(parts)
    return largest * sum((part / largest) ** power for part in parts) ** (1 / power)
