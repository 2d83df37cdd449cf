"""The shift sampler: which bins it visits, given what training has shown."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from supernet.samplers import Shift, Trained, bits_of
from supernet.samplers.shift import BINS, ENOUGH, EVEN, RECENT, Bins, improvement, shifted
from supernet.space import Choice, SearchSpace


def space_of(units: int, *bits: int) -> SearchSpace:
    return SearchSpace.of({f"u{i}": tuple(Choice(b, 64) for b in bits) for i in range(units)} | {"e": (Choice(8, 64),)})


SPACE = space_of(60, 2, 3, 4)


def center(number: int) -> float:
    return 2 + 2 * (number + 0.5) / BINS


def history(fall: dict[int, float], visits: int = 10) -> list[tuple[Trained, ...]]:
    """Every bin visited in turn; the loss of bin b falls by the factor fall[b] a visit."""
    return [(Trained(center(b), fall.get(b, 1.0) ** visit),) for visit in range(visits) for b in range(BINS)]


def visited(past: list[tuple[Trained, ...]], draws: int = 200, space: SearchSpace = SPACE) -> Counter[int]:
    bins = Bins.of(space)
    drawn = (Shift().sample(space, step, draws, 0, past) for step in range(draws))
    return Counter(bins.index(bits_of(subnet, space)) for (subnet,) in drawn)


@pytest.mark.parametrize("better", range(BINS))
def test_draws_move_to_the_bin_that_still_improves_and_no_bin_starves(better: int) -> None:
    past = history({better: 0.9})
    assert shifted(Bins.of(SPACE).visits(past)) == pytest.approx(
        [EVEN / BINS + (1 - EVEN) * (b == better) for b in range(BINS)]
    )
    count = visited(past)
    assert count[better] > 200 * 0.5
    assert all(count[b] > 200 * EVEN / BINS / 2 for b in range(BINS))


def test_twice_the_improvement_gets_twice_the_shifted_draws() -> None:
    probabilities = shifted(Bins.of(SPACE).visits(history({0: 0.8, 3: 0.8**0.5})))
    assert sum(probabilities) == pytest.approx(1)
    floor = EVEN / BINS
    assert probabilities[0] - floor == pytest.approx(2 * (probabilities[3] - floor))


def test_a_bin_counts_by_how_much_not_by_how_high_its_loss_is() -> None:
    past = [(Trained(one.bits, one.loss * (100 if one.bits < 3 else 1)),) for (one,) in history({0: 0.9, 4: 0.9})]
    probabilities = shifted(Bins.of(SPACE).visits(past))
    assert probabilities[0] == pytest.approx(probabilities[4])


def test_where_nothing_improves_draws_are_even() -> None:
    for fall in ({}, {1: 1.1, 2: 1.2}):
        assert shifted(Bins.of(SPACE).visits(history(fall))) == pytest.approx([1 / BINS] * BINS)


def test_what_improved_long_ago_no_longer_counts() -> None:
    past = history({1: 0.5}, visits=20) + history({3: 0.9}, visits=RECENT)
    assert shifted(Bins.of(SPACE).visits(past))[3] == pytest.approx(EVEN / BINS + 1 - EVEN)


def test_before_enough_history_the_least_visited_bin_is_next() -> None:
    """So every bin has been visited `ENOUGH` times after as many rounds, whatever the losses."""
    past: list[tuple[Trained, ...]] = []
    bins, count = Bins.of(SPACE), Counter[int]()
    for step in range(BINS * ENOUGH):
        (subnet,) = Shift().sample(SPACE, step, 100, 3, past)
        bits = bits_of(subnet, SPACE)
        past.append((Trained(bits, 0.5**step),))
        count[bins.index(bits)] += 1
        assert max(count.values()) - min(count[b] for b in range(BINS)) <= 1
    assert set(count.values()) == {ENOUGH}


def test_losses_that_are_no_numbers_say_nothing() -> None:
    past = history({2: 0.9}) + [(Trained(center(b), loss),) for b in range(BINS) for loss in (math.nan, math.inf)]
    assert Bins.of(SPACE).visits(past) == Bins.of(SPACE).visits(history({2: 0.9}))


def test_the_improvement_is_the_slope_of_the_logarithm() -> None:
    assert improvement([math.exp(-0.25 * visit) for visit in range(8)]) == pytest.approx(0.25)
    assert improvement([1.0, 2.0, 3.0]) == 0
    assert improvement([1.0, 0.0]) > 0


@pytest.mark.parametrize(
    "space",
    [
        *(space_of(units, 2, 3) for units in (1, 2, 3, 5, 7)),
        space_of(4, 2, 8),
        space_of(6, 2, 3, 8),
        SearchSpace.of({"a": (Choice(2, 64), Choice(3, 64)), "b": (Choice(3, 64), Choice(8, 64))}),
        SearchSpace.of({"a": (Choice(4, 32), Choice(4, 64))}),
    ],
    ids=["1", "2", "3", "5", "7", "far apart", "uneven gap", "uneven units", "one bit-width"],
)
def test_a_subnet_lies_in_the_bin_that_was_chosen(space: SearchSpace) -> None:
    """Small spaces reach few means: there are fewer bins, and each of them can be reached."""
    bins = Bins.of(space)
    assert 1 <= bins.count <= BINS
    for number in range(bins.count):
        for seed in range(20):
            draw = random.Random(seed)
            for subnet in (bins.subnet(draw, space, number), bins.between(draw, space, number)):
                assert subnet in space
                assert bins.index(bits_of(subnet, space)) == number


def test_bins_are_those_of_the_open_choices() -> None:
    """When a schedule opens more, what was seen before falls into the new bins."""
    past = history({4: 0.9})
    opened = Bins.of(space_of(60, 3, 4))
    assert (opened.low, opened.high) == (3, 4)
    assert sum(map(len, opened.visits(past))) == sum(min(RECENT, n) for n in (30, 0, 10, 0, 10))


def test_draws_are_the_same_for_the_same_history() -> None:
    past = history({2: 0.95})
    for step in range(20):
        assert Shift().sample(SPACE, step, 20, 1, past) == Shift().sample(SPACE, step, 20, 1, tuple(past))
    assert visited(past, 50) != visited(history({1: 0.95}), 50)
