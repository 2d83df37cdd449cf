"""Powers of sizes are found exactly; what was not measured grows in proportion, and says so."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from profiles.gpu_tables.lattice import Lattice

AXES = ((1, 8, 64), (128, 512, 4096, 65536))


def power(a: float, b: float) -> float:
    return float(3e-4 * a**0.3 * b**0.9)


def lattice(without: tuple[tuple[int, int], ...] = ()) -> Lattice:
    points = [point for point in itertools.product(*AXES) if point not in without]
    return Lattice(np.array(points, float), np.array([power(*point) for point in points]))


@pytest.mark.parametrize("point", [(1, 128), (64, 65536), (8, 700), (3, 4096), (20, 10000), (1.5, 65000)])
def test_between_measurements_a_power_of_sizes_is_exact(point: tuple[float, float]) -> None:
    assert lattice().at(*point) == pytest.approx(power(*point)) and lattice().covers(*point)


def test_below_the_smallest_size_the_time_stays_and_beyond_the_largest_it_grows_in_proportion() -> None:
    assert lattice().at(1, 7) == lattice().at(1, 128)
    assert lattice().at(64, 4 * 65536) == pytest.approx(4 * power(64, 65536))
    assert lattice().at(640, 2 * 65536) == pytest.approx(20 * power(64, 65536))
    assert lattice().covers(1, 7) and not lattice().covers(1, 65537) and not lattice().covers(65, 128)


def test_a_crossing_that_nobody_measured_is_in_proportion_to_the_smaller_one_and_not_covered() -> None:
    found = lattice(without=((64, 65536), (1, 128)))
    assert found.at(64, 65536) == pytest.approx(8 * power(8, 65536))
    assert not found.covers(64, 5000) and found.covers(64, 4096) and found.covers(8, 65536)
    assert found.at(1, 128) == pytest.approx(power(8, 128))  # no smaller one: as the larger


def test_of_a_point_that_was_measured_twice_the_least_counts() -> None:
    points = np.array([[1.0], [2.0], [2.0]])
    assert Lattice(points, np.array([1.0, 3.0, 2.0])).at(2) == pytest.approx(2)
    with pytest.raises(ValueError, match="at least one"):
        Lattice(points[:0], np.array([]))
