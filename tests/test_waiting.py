"""Where nobody watches: a line for each stage, and one every half minute, with or without news."""

from __future__ import annotations

import logging

import pytest

from commands.waiting import EVERY_S, Lines, progress


def test_lines_come_with_each_stage_and_every_half_minute() -> None:
    now, written = [0.0], []
    lines = Lines(written.append, lambda: now[0])
    for second in range(100):
        now[0] = float(second)
        lines.report("train, KL 0.5" if second >= 10 else "quantize, 1 of 2", second, 100)
    assert written == [
        f"{at:3d} %  {what}" for at, what in ((0, "quantize, 1 of 2"), *((s, "train, KL 0.5") for s in (10, 40, 70)))
    ]


def test_a_long_stage_says_how_long_it_has_to_go() -> None:
    now, written = [0.0], []
    lines = Lines(written.append, lambda: now[0])
    for block in range(32):  # the first two were there already
        now[0] = 600.0 * block
        lines.report("quantize", block + 2, 33)
    assert written[0] == "  6 %  quantize"
    assert written[1] == "  9 %  quantize, about 300 min to go"
    assert written[-1] == "100 %  quantize"
    lines.report("evaluate", 0, 4)
    assert written[-1] == "  0 %  evaluate"


def test_a_stage_without_news_says_that_it_is_at_work() -> None:
    now, written = [0.0], []
    lines = Lines(written.append, lambda: now[0])
    lines.beat()
    lines.report("load model", 0, 1)
    for second in range(1, 91):
        now[0] = float(second)
        lines.beat()
    assert written == ["  0 %  load model", *(f"  0 %  load model ({s} s ago; still at work)" for s in (30, 60, 90))]
    assert EVERY_S == 30


def test_what_the_work_says_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        report("quantize", 1, 2)
        logging.getLogger("bitfleet").info("learned rounding: 3 of 90 blocks went back")
    logging.getLogger("bitfleet").info("after")
    assert capsys.readouterr().err.splitlines() == [" 50 %  quantize", "learned rounding: 3 of 90 blocks went back"]
