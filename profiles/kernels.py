"""How long a runtime's quantized product takes on this device, from measurements, for shapes measured or not.

A product multiplies `rows` vectors of `in_features` (K) by a quantized matrix of `out_features` (N). Its time is, to
first order, a start-up cost, the quantization of the input (rows x K), the matrix itself (K x N: bytes to stream with
few rows, operations with many) and the output (rows x N). Kernels also work in tiles of K, so that K = 576 may cost
what K = 768 does. So for each (runtime, bits, group size, threads) and each measured number of rows

    t(K, N) = a + b K' + c N + d K' N,      K' = K rounded up to the tile,     a, b, c, d >= 0

is fitted to the relative error, with one tile for all row counts, chosen by the error it leaves. What the fit leaves
over is then spread from the measured shapes to their neighbours in (log K, log N), which damps what the formula does
not know. Between measured row counts the time is linear in rows (a streaming cost that all rows share, and a cost per
row); beyond the largest it grows in proportion; below the smallest it stays. Between measured group sizes it is linear
in the scales per weight, 1 / group size; outside them there is no estimate.

An exact hit is returned as measured. Everything else says "interpolated" and carries as its spread the fit's error on
the shapes it was not shown (leave one out), or the measurements' own spread where that is larger.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from records.errors import InputError
from records.reading import check

MEASURED = "measured"
INTERPOLATED = "interpolated"
ROOFLINE = "roofline"

TILES = (1, 64, 128, 256, 512)
TILE_GAIN = 0.8  # a tile must leave at most this share of the squared error of the smaller one
TRUE_ERROR = 0.03  # relative error of the formula on a measurement without noise; noisier ones count for less
UNKNOWN_SPREAD = 0.3  # of a fit over too few shapes to leave one out
MIN_SHAPES = 5  # under which the fit keeps to a + d K N

Line = tuple[float, ...]
Key = tuple[str, int, int, int, int, int, int, str]
Kind = tuple[str, int, str]
"""Runtime, bits and kernel."""


@dataclass(frozen=True)
class KernelEntry:
    """One measured product. `in_features` is K and `out_features` is N of `MatMulNBits` and its like.

    `kernel` tells those of the same bits and groups apart where a runtime has several: llama.cpp's types.
    """

    runtime: str
    bits: int
    group_size: int
    rows: int
    in_features: int
    out_features: int
    threads: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int
    kernel: str = ""

    def __post_init__(self) -> None:
        for name in ("bits", "group_size", "rows", "in_features", "out_features", "threads", "repeats"):
            check(f"{name} of a kernel entry", getattr(self, name), int, least=1)
        for name in ("p10_ms", "median_ms", "p90_ms"):
            check(f"{name} of a kernel entry", getattr(self, name), float, least=0, above=True)
        check("runtime of a kernel entry", self.runtime, str)
        if not self.p10_ms <= self.median_ms <= self.p90_ms:
            raise InputError(
                f"p10_ms <= median_ms <= p90_ms in a kernel entry, got {self.p10_ms}, {self.median_ms}, {self.p90_ms}"
            )

    @property
    def key(self) -> Key:
        return (
            self.runtime, self.bits, self.group_size, self.rows, self.in_features, self.out_features, self.threads,
            self.kernel,
        )  # fmt: skip

    @property
    def spread(self) -> float:
        return (self.p90_ms - self.p10_ms) / (2 * self.median_ms)


@dataclass(frozen=True)
class KernelEstimate:
    """`ms` for one product, believed within `ms * (1 +- spread)`; `basis` is measured, interpolated or roofline."""

    ms: float
    spread: float
    basis: str


@dataclass(frozen=True)
class KernelTable:
    """Measured products of one device. `date` and `versions` say when and with which software they were measured."""

    entries: tuple[KernelEntry, ...] = ()
    date: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if len(self._by_key) != len(self.entries):
            keys = [entry.key for entry in self.entries]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"a kernel table holds each product once, got two of {twice}")

    def __bool__(self) -> bool:
        return bool(self.entries)

    def bits(self, runtime: str) -> tuple[int, ...]:
        return tuple(sorted({e.bits for e in self.entries if e.runtime == runtime}))

    def estimate(
        self, runtime: str, bits: int, group_size: int, rows: int, in_features: int, out_features: int,
        threads: int | None = None, kernel: str = "",
    ) -> KernelEstimate | None:  # fmt: skip
        """The time of one product; None where nothing was measured for this runtime, these bits, threads or groups.

        `threads=None` takes the thread count with the most measurements. Estimates are remembered: asking again is a
        dictionary look-up.
        """
        if min(rows, in_features, out_features) < 1:
            raise ValueError(f"rows, K and N must be positive, got {rows}, {in_features} and {out_features}")
        key = (runtime, bits, group_size, rows, in_features, out_features, threads, kernel)
        if key not in self._estimates:
            self._estimates[key] = self._estimate(*key)
        return self._estimates[key]

    def to_json(self) -> dict[str, Any]:
        return {"date": self.date, "versions": dict(self.versions), "entries": [asdict(e) for e in self.entries]}

    @cached_property
    def _by_key(self) -> dict[Key, KernelEntry]:
        return {entry.key: entry for entry in self.entries}

    @cached_property
    def _estimates(self) -> dict[tuple[Any, ...], KernelEstimate | None]:
        return {}

    @cached_property
    def _families(self) -> dict[tuple[Kind, int], dict[int, _Family]]:
        """(kind, threads) -> group size -> fit."""
        found: dict[tuple[Kind, int], dict[int, list[KernelEntry]]] = {}
        for e in self.entries:
            found.setdefault(((e.runtime, e.bits, e.kernel), e.threads), {}).setdefault(e.group_size, []).append(e)
        return {key: {g: _Family(tuple(es)) for g, es in groups.items()} for key, groups in found.items()}

    def _usual_threads(self, kind: Kind) -> int | None:
        counts: dict[int, int] = {}
        for e in self.entries:
            if (e.runtime, e.bits, e.kernel) == kind:
                counts[e.threads] = counts.get(e.threads, 0) + 1
        return max(counts, key=lambda threads: (counts[threads], threads)) if counts else None

    def _estimate(
        self, runtime: str, bits: int, group_size: int, rows: int, k: int, n: int, threads: int | None, kernel: str
    ) -> KernelEstimate | None:
        kind = (runtime, bits, kernel)
        threads = self._usual_threads(kind) if threads is None else threads
        if threads is None:
            return None
        exact = self._by_key.get((runtime, bits, group_size, rows, k, n, threads, kernel))
        if exact is not None:
            return KernelEstimate(exact.median_ms, exact.spread, MEASURED)
        groups = self._families.get((kind, threads), {})
        if group_size in groups:
            return KernelEstimate(*groups[group_size].predict(rows, k, n), INTERPOLATED)
        below, above = _neighbours(sorted(groups), group_size)
        if below is None or above is None:
            return None
        (low, low_spread), (high, high_spread) = groups[below].predict(rows, k, n), groups[above].predict(rows, k, n)
        share = (1 / group_size - 1 / below) / (1 / above - 1 / below)
        return KernelEstimate(low + (high - low) * share, max(low_spread, high_spread), INTERPOLATED)


class _Family:
    """The fit over all measured shapes and rows of one (runtime, bits, group size, threads)."""

    def __init__(self, entries: tuple[KernelEntry, ...]) -> None:
        self._by_rows: dict[int, list[KernelEntry]] = {}
        for entry in entries:
            self._by_rows.setdefault(entry.rows, []).append(entry)
        self._rows = sorted(self._by_rows)

    @cached_property
    def _fits(self) -> dict[int, _ShapeFit]:
        best: dict[int, _ShapeFit] | None = None
        for tile in TILES:
            fits = {rows: _ShapeFit(entries, tile) for rows, entries in self._by_rows.items()}
            if best is None or _error(fits) < TILE_GAIN * _error(best):
                best = fits
        assert best is not None
        return best

    def predict(self, rows: int, k: int, n: int) -> tuple[float, float]:
        below, above = _neighbours(self._rows, rows)
        if below is None or above is None:  # outside the measured rows
            nearest = self._rows[0] if below is None else self._rows[-1]
            ms, spread = self._fits[nearest].predict(k, n)
            return ms * max(1.0, rows / nearest), spread if rows == nearest else max(spread, UNKNOWN_SPREAD)
        low, low_spread = self._fits[below].predict(k, n)
        if below == above:
            return low, low_spread
        high, high_spread = self._fits[above].predict(k, n)
        ms = low + (max(high, low) - low) * (rows - below) / (above - below)
        return ms, max(low_spread, high_spread)


class _ShapeFit:
    """t(K, N) for one number of rows and one tile of K."""

    def __init__(self, entries: list[KernelEntry], tile: int) -> None:
        self._tile = tile
        self._places = [(math.log(e.in_features), math.log(e.out_features)) for e in entries]
        self._lines = [self._features(e.in_features, e.out_features) for e in entries]
        self._times = [e.median_ms for e in entries]
        # Other programs only add time: a median near the fastest calls is sound, however slow the slowest were.
        self._trust = [1 / math.hypot(1 - e.p10_ms / e.median_ms, TRUE_ERROR) for e in entries]
        self._noise = max(e.spread for e in entries)
        full = len(entries) >= MIN_SHAPES
        self._columns = (0, 1, 2, 3) if full else (0, 3)
        everything = list(range(len(entries)))
        self._weights = self._solve(everything)
        self._left_over = self._errors(self._weights, everything)
        self.squared_error = sum((e * t) ** 2 for e, t in zip(self._left_over, self._trust, strict=True))

    def predict(self, k: int, n: int) -> tuple[float, float]:
        """(ms, spread)."""
        place = (math.log(k), math.log(n))
        everything = range(len(self._times))
        return self._at(place, self._features(k, n), self._weights, self._left_over, everything), self._spread

    @cached_property
    def _spread(self) -> float:
        """The 80th percentile of the relative error on a shape that was left out, at least the measurements' own."""
        count = len(self._times)
        if count < MIN_SHAPES:
            return max(self._noise, UNKNOWN_SPREAD)
        errors = sorted(self._error_without(i) for i in range(count))
        return max(self._noise, errors[math.ceil(0.8 * count) - 1])

    def _error_without(self, i: int) -> float:
        others = [j for j in range(len(self._times)) if j != i]
        weights = self._solve(others)
        left_over = self._errors(weights, others)
        return abs(self._at(self._places[i], self._lines[i], weights, left_over, others) / self._times[i] - 1)

    def _errors(self, weights: Line, chosen: Sequence[int]) -> list[float]:
        return [math.log(self._times[i] / _dot(weights, self._lines[i])) for i in chosen]

    def _features(self, k: int, n: int) -> Line:
        tiled = -(-k // self._tile) * self._tile
        return (1.0, float(tiled), float(n), float(tiled) * n)

    def _at(self, place: Line, line: Line, weights: Line, left_over: Sequence[float], chosen: Sequence[int]) -> float:
        pull = total = 0.0
        for i, error in zip(chosen, left_over, strict=True):
            trusted = (self._trust[i] * TRUE_ERROR) ** 2  # 1 for a measurement without noise
            near = trusted / (math.dist(place, self._places[i]) ** 2 + 1e-9)
            pull += near * error
            total += near
        # The 1 pulls shapes far from all measured ones (a factor e in size) back to the formula.
        return _dot(weights, line) * math.exp(pull / (total + 1))

    def _solve(self, chosen: Sequence[int]) -> Line:
        """Non-negative least squares of the relative error, exact: the best of the few subsets of four columns."""
        import numpy as np

        target = np.array([self._trust[i] for i in chosen])
        times = np.array([self._times[i] for i in chosen])
        matrix = np.array([self._lines[i] for i in chosen]) * (target / times)[:, None]
        scale = matrix.max(axis=0)
        best: tuple[float, Line] | None = None
        for size in range(1, len(self._columns) + 1):
            for subset in itertools.combinations(self._columns, size):
                part = matrix[:, subset] / scale[list(subset)]
                solution = np.linalg.lstsq(part, target, rcond=None)[0]
                if (solution < 0).any():
                    continue
                error = float(((part @ solution - target) ** 2).sum())
                if best is None or error < best[0] - 1e-12:
                    weights = np.zeros(4)
                    weights[list(subset)] = solution / scale[list(subset)]
                    best = (error, tuple(weights.tolist()))
        assert best is not None  # one positive column alone always has a positive solution
        return best[1]


def _dot(weights: Line, line: Line) -> float:
    return sum(w * x for w, x in zip(weights, line, strict=True))


def _error(fits: dict[int, _ShapeFit]) -> float:
    return sum(fit.squared_error for fit in fits.values())


def _neighbours(ordered: list[int], value: int) -> tuple[int | None, int | None]:
    """The largest member <= value and the smallest >= value; both the same on a hit."""
    at = bisect_left(ordered, value)
    above = ordered[at] if at < len(ordered) else None
    below = value if above == value else ordered[at - 1] if at else None
    return below, above
