"""The page of a plan: everything in it, nothing loaded from elsewhere, nothing of a plan taken for HTML."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from planner.amounts import milliseconds, size
from planner.card import card, chart
from planner.fleet.index import LOADS, TIME, Device
from planner.fleet.receipts import Receipt
from planner.margins import said
from planner.plan import Margin, Plan
from planner.request import Budget
from planner.rows import BROKEN, PEAK_MEMORY, Row
from planner.search.base import Problem
from planner.search.exact import ExactSearch
from planner.summary import beside, lead, promises, statistics
from profiles.catalog import load
from supernet.quality import Quality
from tests.planner.fleet.test_page import Tags
from tests.planner.test_pipeline import BUDGET, Files, drawn, framed_for, sensitive_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return sensitive_files(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def made(files: Files) -> Plan:
    margin = Margin("kv_cache", "f32", "int8", -9_000_000, 0.002, -0.01)
    return replace(
        drawn(files, BUDGET), command="bitfleet plan net --mem 228MB --html card.html", margins=(margin,)
    )  # fmt: skip


def receipt(made: Plan) -> Receipt:
    rows = (
        Row(LOADS, "", 1.0, 1.0),
        Row(PEAK_MEMORY, "bytes", made.chosen.memory_bytes, made.chosen.memory_bytes - 10**6),
        Row(TIME, "ms", made.chosen.tpot_ms, 99.9, 0.2, verdict=BROKEN, note="a <slow> machine"),
    )
    machine = Device.of(load("raspberry-pi-5-8gb"))
    return Receipt("net", "0" * 64, {}, "box", machine, {"onnxruntime": "1.31.0"}, "2026-12-02T08:00:00+00:00", rows)


def test_the_page_says_what_the_terminal_says(made: Plan) -> None:
    text = Tags(card(made)).text
    for row in (*promises(made), *beside(made)):
        assert all(" ".join(cell.split()) in text for cell in row), row
    for line in (*made.notes, *map(said, made.margins)):
        assert " ".join(line.split()) in text
    assert made.command in text and "Nothing of this plan's package was measured yet" in text
    for role, digits in made.bits.items():
        assert f"{role} {digits}" in text


def test_what_is_lost_over_tokens_is_on_the_page_where_it_was_measured(made: Plan) -> None:
    assert 'id="tokens"' not in card(made) and statistics(made) == []
    kl = np.linspace(0, 1, 2001)
    found = np.stack([kl, kl < 0.75, 2 + kl, 2 + 0 * kl], -1)[None]
    quality = Quality.of(found).to_json()
    chosen = replace(made.chosen, measured={"kl": 0.5, "texts": {"prose <1>": quality}})
    measured = replace(made, compared=(chosen, *made.compared[1:]))
    rows = [row[1:3] for row in statistics(measured)]
    assert rows[:4] == [
        ("KL, median", "0.5"), ("KL, 99 %", "0.99"), ("KL, 99.9 %", "0.999"), ("same top token", "74.96 ± 0.97 %"),
    ]  # fmt: skip
    assert rows[-1][0] == "perplexity / full model's" and rows[-1][1].startswith("1.649 ± ")
    text = Tags(card(measured)).text
    for row in statistics(measured):
        assert " ".join(" ".join(row).split()) in text


def test_the_first_line_is_the_verdict(files: Files, made: Plan) -> None:
    uniform = made.uniform
    assert uniform is not None and lead(made) in Tags(card(made)).text
    assert lead(made) == (
        f"KL {made.chosen.measured['kl']:.4g} a token in {size(made.chosen.memory_bytes)}, measured on text that no "
        f"search saw; {uniform.source} within these limits loses {uniform.measured['kl']:.4g}"
    )
    within = drawn(files, Budget(10**9, max_kl=0.5))
    assert within.uniform is not None
    takes = size(within.uniform.memory_bytes)
    assert lead(within).endswith(f"; {within.uniform.source} within this loss takes {takes}")
    assert lead(drawn(files, Budget(10**9))).endswith("; uniform 8 bits, no mixture was found to be better")


def test_what_was_measured_stands_beside_what_was_promised(made: Plan) -> None:
    text = Tags(card(made, receipt(made))).text
    assert f"{size(made.chosen.memory_bytes)} {size(made.chosen.memory_bytes - 10**6)} holds" in text
    assert f"{milliseconds(made.chosen.tpot_ms)} +20 % 99.9 ms broken a <slow> machine" in text
    assert "Nothing of this plan's package was measured yet" not in text


def test_nothing_is_loaded_and_nothing_runs(made: Plan) -> None:
    hostile = replace(made, model={**made.model, "name": "<script>alert(1)</script>"}, notes=("<img src=x onerror=y>",))
    html = card(hostile, receipt(made))
    tags = Tags(html)
    assert "<script" not in html and "<img" not in html
    assert not [(name, value) for _, name, value in tags.attributes if name in ("src", "href") or name.startswith("on")]
    assert "url(" not in html and "@import" not in html


def test_the_front_is_the_least_within_so_much_memory(files: Files, made: Plan) -> None:
    problem = framed_for(files, BUDGET).problem
    memory = [point.memory_bytes for point in made.front]
    losses = [point.kl for point in made.front]
    assert len(memory) > 8 and memory == sorted(memory) and losses == sorted(losses, reverse=True)
    band = 1 + made.bands["memory"]
    assert band * memory[0] == pytest.approx(problem.resources[0].least(problem.space), rel=1e-6)
    middle = made.front[len(memory) // 2]
    assert middle.kl == pytest.approx(least(problem, round(band * middle.memory_bytes) + 1))
    assert losses[-1] == pytest.approx(least(problem, 10**10))


def least(problem: Problem, memory: int) -> float:
    resources = (replace(problem.resources[0], limit=memory), *problem.resources[1:])
    return ExactSearch().search(replace(problem, resources=resources)).candidates[0].loss


def test_every_subnet_has_its_place_in_the_chart(made: Plan) -> None:
    shown = chart(made)
    assert [dot.kind.split()[0] for dot in shown.dots].count("plan") == 1 and shown.dots[-1].kind == "plan"  # on top
    assert len(shown.dots) == 1 + len(made.rejected)
    places = [(dot.x, dot.y) for dot in shown.dots]
    places += [tuple(map(float, pair.split(","))) for pair in shown.line.split()]  # type: ignore[misc]
    assert all(0 <= place <= 100 for pair in places for place in pair)
    by_mark = {dot.mark: dot for dot in shown.dots if dot.kind.startswith("uniform")}
    assert by_mark["2"].x < by_mark["8"].x and by_mark["2"].y < by_mark["8"].y  # smaller, and loses more
    assert made.uniform is not None and made.uniform.measured
    measured = by_mark[f"{made.uniform.mean_bits:.0f}"]
    assert "predicted" in by_mark["8"].kind and "predicted" not in measured.kind
    assert shown.memory_limit is not None and 3 <= len(shown.memory) <= 7 and len(shown.losses) >= 2
    assert [tick.place for tick in shown.losses] == sorted((tick.place for tick in shown.losses), reverse=True)


def test_a_limit_far_away_stays_off_the_chart(files: Files) -> None:
    roomy = drawn(files, Budget(16 * 10**9, max_kl=0.5))
    shown = chart(roomy)
    assert shown.memory_limit is None and shown.loss_limit is not None
    assert re.search(r'<line class="limit" x1="0"', card(roomy))
