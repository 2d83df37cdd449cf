"""The minutes are those of the whole: shared out at the start, kept to by what comes late, and said."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from planner.runtimes.shapes import Shape
from supernet.clock import LEARNED, LEAST, Clock, fewer
from supernet.create import create
from supernet.expected import SOLVING_S, SPREAD_S, Cost, Pass, expected_seconds
from supernet.recipe import Recipe

STAGES = {"text": Cost(0, 60), "quantize": Cost(0, 120), "trial": Cost(0, 60), "sensitivities": Cost(0, 60)}
LATE = ("trial", "sensitivities")


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def clock(minutes: float | None) -> tuple[Clock, Time]:
    time = Time()
    made = Clock(minutes, time)
    made.expect(STAGES, LATE)
    return made, time


def run(made: Clock, time: Time, slow: float) -> dict[str, float]:
    """Every stage takes `slow` times what is expected of its share; training takes what is left for it."""
    shares = {}
    for stage, cost in STAGES.items():
        if stage == "trial":
            time.now += made.learning_seconds() or 0.0
        with made.stage(stage) as share:
            time.now += slow * cost.at(share)
        shares[stage] = share
    return shares


@pytest.mark.parametrize("slow", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("minutes", [10.0, 20.0, 60.0])
def test_a_run_ends_when_its_minutes_do(minutes: float, slow: float) -> None:
    made, time = clock(minutes)
    shares = run(made, time, slow)
    assert time.now - 1000 == pytest.approx(60 * minutes, rel=0.15)
    assert all(LEAST <= share <= 1 for share in shares.values())


def test_where_all_fits_nothing_is_shortened_and_training_has_the_rest() -> None:
    made, time = clock(20.0)
    assert made.learning_seconds() == 900
    assert set(run(made, time, 1.0).values()) == {1.0}


def test_the_least_is_said_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bitfleet")
    made, _ = clock(1.0)
    assert made.learning_seconds() == 0
    assert "the least for this model here is about 75 s" in caplog.text
    assert "stages are shortened to 25% of their text" in caplog.text


def test_where_nothing_learns_no_time_is_kept_for_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bitfleet")
    learning, alone = Clock(1.5, lambda: 0.0), Clock(1.5, lambda: 0.0)
    costs = {"quantize": Cost(10.0, 60.0), "trial": Cost(0.0)}
    learning.expect(costs, LATE)
    assert learning.share("quantize") == pytest.approx((90 * (1 - LEARNED) - 10) / 60)
    caplog.clear()
    alone.expect(costs, LATE, learns=False)
    assert alone.share("quantize") == 1
    assert caplog.messages == ["90 s in all, expected: quantize 70 s"]


def test_minutes_that_do_not_do_count_down_from_what_it_takes() -> None:
    now, said = [0.0], []
    clock = Clock(1.0, lambda: now[0])
    report = clock.showing(lambda what, done, total: said.append(what))
    report("load model", 0, 1)
    clock.expect({"quantize": Cost(fixed=600.0)}, (), 60.0)
    now[0] = 60.0
    report("quantize", 0, 1)
    assert said == ["load model, 60 s left", "quantize, 10.0 min left"]


def test_what_is_left_follows_the_stages_where_a_machine_was_busy_only_at_first() -> None:
    now, said = [0.0], []
    clock = Clock(1.0, lambda: now[0])
    clock.expect({"text": Cost(fixed=300.0), "quantize": Cost(fixed=600.0), "trial": Cost(fixed=60.0)}, LATE, 60.0)
    with clock.stage("text"):
        now[0] = 30.0
    clock.showing(lambda what, done, total: said.append(what))("quantize", 0, 1)
    with clock.stage("quantize"):
        now[0] = 90.0
    clock.showing(lambda what, done, total: said.append(what))("train", 0, 1)
    assert said == ["quantize, 72 s left", "train, 12 s left"]


@pytest.mark.parametrize(("slow", "pace"), [(0.1, 0.5), (0.6, 0.78), (0.9, 1.0), (1.5, 1.5), (9.0, 4.0)])
def test_stages_to_come_are_believed_to_be_as_those_before_with_caution(slow: float, pace: float) -> None:
    made, time = clock(60.0)
    with made.stage("text") as share:
        time.now += slow * STAGES["text"].at(share)
    assert made.pace == pytest.approx(pace)


def test_a_stage_that_runs_late_takes_from_those_after_it_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bitfleet")
    made, time = clock(8.0)
    with made.stage("text"):
        time.now += 240
    with made.stage("quantize") as share:
        assert share < 0.5
    assert "stages before took longer than expected: quantize is shortened to" in caplog.text


def test_without_a_limit_nothing_is_shortened_nor_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bitfleet")
    made, time = clock(None)
    assert (made.share("text"), made.seconds_for("text"), made.learning_seconds()) == (1.0, None, None)
    time.now += 1e6
    with made.stage("quantize") as share:
        assert share == 1.0
    assert caplog.text == ""


def test_windows_at_a_share() -> None:
    assert [fewer(64, 1.0, 8), fewer(64, 0.5, 8), fewer(64, 0.01, 8), fewer(4, 0.5, 8)] == [64, 32, 8, 4]


def test_every_stage_says_that_it_began_and_how_much_time_is_left(source: str, data: str, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    recipe = Recipe(bits=(2, 8), group_size=16, minutes=0.2, batch=2, window_tokens=16, data=data, quantizer="gptq")
    files = create(source, tmp_path / "out", recipe, progress=lambda *given: seen.append(given))
    firsts: dict[str, int] = {}
    for what, done, _ in seen:
        firsts.setdefault(what.partition(",")[0], done)
        assert what.endswith((" left", " late"))
    begun = [
        "load model", "time stages", "full model", "plain rounding", "quantize", "time a step", "try adapters",
        "sensitivities",
    ]  # fmt: skip
    assert [stage for stage in firsts if stage in begun] == begun
    assert all(firsts[stage] == 0 for stage in begun)
    held_out = files.info["held_out"]
    assert set(held_out) == {"rounding", "start", "end"}
    assert all(held_out["end"][bits] <= max(kl * 1.05, kl + 5e-4) for bits, kl in held_out["rounding"].items())
    assert files.info["lost"] == {}


def test_the_head_is_expected_at_every_width_of_a_table() -> None:
    spec = Shape("tiny", 2, 256, 512, 4, 2, 64, 320).spec()
    tokens = dict.fromkeys(("held out", "scale channels", "quantize", "try adapters", "proof", "sensitivities"), 64)
    quantize = {
        grid: expected_seconds(spec, Pass(1e-6, 1e-6, 1e-6), Recipe(grid=grid, data="text"), tokens)["quantize"].fixed
        for grid in ("sym", "k")
    }
    head = next(unit for unit in spec.units if unit.is_table).linears[0]
    solved = head.weights * (SOLVING_S + SPREAD_S * head.in_features) / torch.get_num_threads()
    assert quantize["k"] - quantize["sym"] == pytest.approx(solved)  # 4, 6 and 8 bits, and 4 and 8
