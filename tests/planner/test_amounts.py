"""Amounts as people read them."""

from __future__ import annotations

import pytest

from planner.amounts import sizes


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([45_900_000.0, 46_100_000.0, None], ["45.9 MB", "46.1 MB", "-"]),
        ([45_910_000.0, 45_930_000.0, 45_910_000.0], ["45.91 MB", "45.93 MB", "45.91 MB"]),
        ([1_500_000_000.0, 1_500_400_000.0], ["1.5000 GB", "1.5004 GB"]),
        ([1.0, 2.0], ["0.0000 MB", "0.0000 MB"]),  # told apart by no number of decimals that is worth reading
    ],
)
def test_sizes_beside_each_other_are_told_apart(values: list[float | None], expected: list[str]) -> None:
    assert sizes(values) == expected
