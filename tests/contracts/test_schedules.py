"""Every schedule: leaves each unit a choice, opens everything in the end, and holds the largest back at no time."""

from __future__ import annotations

import pytest

from supernet.schedules import SCHEDULES, Delayed, Progressive
from supernet.space import Choice, SearchSpace

TWO, THREE, FOUR, EIGHT = (Choice(bits, 64) for bits in (2, 3, 4, 8))
SPACE = SearchSpace.of({"embedding": (EIGHT,), "a": (TWO, THREE, FOUR), "b": (TWO, THREE, FOUR)})
SPACES = {
    "alike": SPACE,
    "uneven": SearchSpace.of({"a": (TWO, THREE, FOUR), "b": (THREE, FOUR), "c": (FOUR,)}),
    "one": SearchSpace.of({"a": (FOUR,), "b": (FOUR,)}),
}


def opened(name: str, space: SearchSpace, steps: int) -> list[SearchSpace]:
    return [SCHEDULES[name]().open(space, step, steps) for step in range(steps)]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_unit_keeps_its_largest_and_everything_opens_for_good(name: str, space: SearchSpace, steps: int) -> None:
    spaces = opened(name, space, steps)
    assert spaces[-1] == space
    before = None
    for now in spaces:
        for unit, choices in space:
            assert now[unit] == choices[-len(now[unit]) :]
            assert before is None or set(before[unit]) <= set(now[unit])
        before = now


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_factors_and_the_largest_has_one(name: str, space: SearchSpace) -> None:
    schedule = SCHEDULES[name]()
    for step in range(100):
        now = schedule.open(space, step, 100)
        for unit, choices in space:
            assert schedule.rate(choices[-1], space, step, 100) == 1
            assert all(0 < schedule.rate(choice, space, step, 100) <= 1 for choice in now[unit])
    assert all(schedule.rate(choice, space, 99, 100) == 1 for _, choices in space for choice in choices)


def test_a_constant_schedule_holds_nothing_back() -> None:
    assert set(opened("constant", SPACE, 20)) == {SPACE}


def test_progressive_opens_one_choice_a_stage() -> None:
    spaces = opened("progressive", SPACE, 100)
    assert [spaces[step]["a"] for step in (0, 29)] == [(FOUR,)] * 2
    assert [spaces[step]["a"] for step in (30, 34)] == [(THREE, FOUR)] * 2
    assert [spaces[step]["a"] for step in (35, 99)] == [(TWO, THREE, FOUR)] * 2
    assert {space["embedding"] for space in spaces} == {(EIGHT,)}
    early = Progressive(largest=0.1, between=0.6)
    assert [len(early.open(SPACE, step, 100)["b"]) for step in (9, 10, 69, 70)] == [1, 2, 2, 3]


def test_two_choices_have_no_stage_between() -> None:
    space = SearchSpace.of({"a": (TWO, THREE)})
    assert [len(Progressive().open(space, step, 100)["a"]) for step in (29, 30)] == [1, 2]


def test_delayed_opens_everything_half_way() -> None:
    spaces = opened("delayed", SPACE, 100)
    assert {space["a"] for space in spaces[:50]} == {(FOUR,)}
    assert set(spaces[50:]) == {SPACE}
    assert [len(Delayed(largest=0.2).open(SPACE, step, 100)["a"]) for step in (19, 20)] == [1, 3]


def test_delayed_raises_the_rate_of_the_smaller_choices() -> None:
    rates = [Delayed().rate(TWO, SPACE, step, 100) for step in range(100)]
    assert rates[:50] == [0] * 50
    assert rates[50:60] == pytest.approx([share / 10 for share in range(1, 11)])
    assert rates[60:] == [1] * 40
    assert [Delayed().rate(THREE, SPACE, step, 100) for step in range(100)] == rates
    assert Delayed(ramp=0).rate(TWO, SPACE, 50, 100) == 1


@pytest.mark.parametrize(
    ("schedule", "field"), [(Progressive, "largest"), (Progressive, "between"), (Delayed, "largest"), (Delayed, "ramp")]
)
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_shares_out_of_range_are_refused(schedule: type, field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is a share of the steps, from 0 to below 1, got {value}"):
        schedule(**{field: value})


def test_stages_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="got 3 choices and a start at 1.1 of the steps; use smaller shares"):
        Progressive(largest=0.5, between=0.6).open(SPACE, 0, 100)
