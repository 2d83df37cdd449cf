"""How much of the full model's score is left, with its interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from planner.tasks.scores import Recovery, Score, means, recovery


def score(by_example: tuple[float, ...], higher: bool = True) -> Score:
    value = sum(by_example) / len(by_example)
    return Score("t", "acc", value, 0.1, len(by_example), higher, by_example)


def test_the_interval_is_of_the_ratio_of_paired_means() -> None:
    """As resampling the examples, the same for both models, finds it."""
    rng = np.random.default_rng(0)
    full = rng.random(400) < 0.6
    ours = np.where(rng.random(400) < 0.9, full, ~full)
    found = recovery(score(tuple(map(float, ours))), score(tuple(map(float, full))))
    assert found is not None and found.percent == pytest.approx(100 * ours.mean() / full.mean())
    drawn = rng.integers(400, size=(4000, 400))
    spread = 100 * (ours[drawn].mean(1) / full[drawn].mean(1)).std()
    assert found.interval == pytest.approx(stats.t.ppf(0.975, 399) * spread, rel=0.05)
    unpaired = 100 * (ours[drawn].mean(1) / full[rng.permuted(drawn, axis=1)[::-1]].mean(1)).std()
    assert found.interval < stats.t.ppf(0.975, 399) * unpaired  # pairing is worth something


def test_answers_that_never_differ_leave_what_so_many_would_not_show() -> None:
    """Three of the examples, as a share of what the full model has right."""
    same = score((1.0, 0.0) * 30)
    found = recovery(same, same)
    assert found is not None and found.percent == 100
    assert found.interval == pytest.approx(100 * (3 / 60) / 0.5)
    few = score((1.0, 0.0, 1.0))
    assert recovery(few, few) == Recovery(100.0, 100.0)


def test_what_is_no_share_has_none() -> None:
    assert recovery(score((1.0, 0.0), higher=False), score((1.0, 0.0), higher=False)) is None
    assert recovery(score((1.0, 0.0)), score((0.0, 0.0))) is None
    assert recovery(score((1.0, 0.0)), score((1.0,))) == Recovery(50.0, None)  # of other examples
    nothing = Score("t", "acc", float("nan"), None, 2)
    assert recovery(nothing, score((1.0, 0.0))) is None and recovery(score((1.0, 0.0)), nothing) is None
    assert nothing.to_json()["value"] is None


def test_numbers_by_example_are_kept_where_the_value_is_their_mean() -> None:
    assert means([True, 0, 1.0], 2 / 3) == (1.0, 0.0, 1.0)
    assert means([1.0, 0.0], 0.7) == ()
    assert means([(1, 2), (3, 4)], 0.5) == ()
    assert means([], 0.0) == ()
