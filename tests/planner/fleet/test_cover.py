"""The fewest packages: held against every subset of small instances."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.fleet.cover import fewest

Losses = list[list[float | None]]


@st.composite
def instances(draw: st.DrawFn) -> Losses:
    """Up to 6 devices and 6 candidates; every device has one that can serve it."""
    candidates = draw(st.integers(1, 6))
    loss = st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.102, 0.104, 0.11, 0.2, 1.0]))
    row = st.lists(loss, min_size=candidates, max_size=candidates).filter(lambda row: any(x is not None for x in row))
    return draw(st.lists(row, min_size=1, max_size=6))


def allowed(losses: Losses, max_loss: float) -> list[set[int]]:
    found = []
    for row in losses:
        best = min(x for x in row if x is not None)
        found.append({n for n, x in enumerate(row) if x is not None and x <= best * (1 + max_loss) * (1 + 1e-12)})
    return found


@settings(max_examples=150, deadline=None)
@given(instances(), st.sampled_from([0.0, 0.03, 0.05, 1.0]))
def test_no_smaller_set_serves_all_and_no_set_of_that_size_loses_less(losses: Losses, max_loss: float) -> None:
    cover = fewest(losses, max_loss)
    may = allowed(losses, max_loss)
    assert cover.proven and all(number in served for number, served in zip(cover.takes, may, strict=True))
    count = len(set(cover.takes))
    sets = [set(s) for n in range(1, count + 1) for s in combinations(range(len(losses[0])), n)]
    serving = [s for s in sets if all(s & served for served in may)]
    assert min(map(len, serving)) == count

    def excess(row: list[float | None], number: int) -> float:
        best = min(x for x in row if x is not None)
        value = row[number]
        assert value is not None
        return value / max(best, 1e-30) - 1

    def total(chosen: set[int]) -> float:
        return sum(min(excess(row, n) for n in chosen & served) for row, served in zip(losses, may, strict=True))

    taken = sum(excess(row, number) for row, number in zip(losses, cover.takes, strict=True))
    assert taken == pytest.approx(min(total(s) for s in serving), abs=1e-6)


def test_devices_that_lose_nothing_more_share_one_package() -> None:
    assert fewest([[0.1, 0.1], [None, 0.1], [0.1, 0.1]], 0.0).takes == (1, 1, 1)
    assert fewest([], 0.05).takes == ()


def test_a_device_that_nothing_can_serve_is_no_instance() -> None:
    with pytest.raises(ValueError, match="every device needs a candidate"):
        fewest([[0.1], [None]], 0.05)


def test_the_number_stands_where_there_is_no_time_to_find_the_least_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from scipy import optimize

    solve, calls = optimize.milp, []

    def late(*given: object, **options: object) -> object:
        calls.append(given)
        return solve(*given, **options) if len(calls) == 1 else SimpleNamespace(x=None)

    monkeypatch.setattr(optimize, "milp", late)
    losses: Losses = [[0.1, 0.104, None], [None, 0.104, 0.1], [0.1, 0.1, None]]
    cover = fewest(losses, 0.05)
    assert len(calls) == 2 and cover.proven and cover.takes == (1, 1, 1)
