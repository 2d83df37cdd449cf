"""Times measured where a few axes cross, and what lies between them.

Sizes are measured at powers of two or near them, and times grow as powers of sizes: between crossings the logarithm of
the time is linear in the logarithms of the sizes. Beyond the largest size, and at crossings that nobody measured (they
are the largest, which did not fit), time grows in proportion; below the smallest it stays.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Lattice:
    """`points` `(count, axes)` above zero with their times `ms` `(count,)`; of a point measured twice the least."""

    def __init__(self, points: NDArray[np.float64], ms: NDArray[np.float64]) -> None:
        if not len(points):
            raise ValueError("a lattice needs at least one time")
        self.axes: tuple[list[float], ...] = tuple(np.unique(column).tolist() for column in points.T)
        logs = np.full([len(axis) for axis in self.axes], np.inf)
        places = tuple(np.searchsorted(axis, column) for axis, column in zip(self.axes, points.T, strict=True))
        np.minimum.at(logs, places, np.log(ms))
        self._measured = np.isfinite(logs)
        self.least_ms = float(np.exp(logs.min()))
        self._logs = _filled(np.where(self._measured, logs, np.nan), [np.log(axis) for axis in self.axes])

    def at(self, *point: float) -> float:
        """Milliseconds at a point, one coordinate an axis."""
        corners, beyond = self._around(point)
        return math.exp(beyond + sum(weight * float(self._logs[corner]) for corner, weight in corners))

    def covers(self, *point: float) -> bool:
        """Whether it lies between times that were all measured."""
        corners, beyond = self._around(point)
        return not beyond and all(self._measured[corner] for corner, _ in corners)

    def _around(self, point: tuple[float, ...]) -> tuple[list[tuple[tuple[int, ...], float]], float]:
        """The crossings around a point with their weights, and by what logarithm the time is beyond the last one."""
        sides, beyond = [], 0.0
        for axis, value in zip(self.axes, point, strict=True):
            last = len(axis) - 1
            low = min(max(bisect_right(axis, value) - 1, 0), last)
            if value > axis[last]:
                beyond += math.log(value / axis[last])
            if low == last or value <= axis[low]:
                sides.append([(low, 1.0)])
                continue
            share = math.log(value / axis[low]) / math.log(axis[low + 1] / axis[low])
            sides.append([(low, 1 - share), (low + 1, share)])
        found = []
        for corner in itertools.product(*sides):
            found.append((tuple(place for place, _ in corner), math.prod(weight for _, weight in corner)))
        return found, beyond


def _filled(logs: NDArray[np.float64], axes: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """With what was not measured: from the smaller neighbour in proportion, else as the larger one."""
    for number, axis in enumerate(axes):
        rows = np.moveaxis(logs, number, 0)
        for i in range(1, len(axis)):
            rows[i] = np.where(np.isnan(rows[i]), rows[i - 1] + axis[i] - axis[i - 1], rows[i])
    for number, axis in enumerate(axes):
        rows = np.moveaxis(logs, number, 0)
        for i in reversed(range(len(axis) - 1)):
            rows[i] = np.where(np.isnan(rows[i]), rows[i + 1], rows[i])
    return logs
