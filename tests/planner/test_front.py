"""Plans with a measured front: its points, the plan among them, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from planner import pipeline
from planner.card import card, chart
from planner.frame import Framed
from planner.front import with_aims
from planner.limits import MEMORY, TPOT
from planner.plan import UNIFORM, Plan, Point, Tuned
from planner.propose import SHOWN, Proposed, searched_front
from planner.quality import Quality
from planner.request import Budget, parse_bytes, parse_duration
from planner.runtimes import RUNTIMES
from planner.search.front import FrontSearch
from planner.summary import front
from records.errors import InputError
from supernet.space import Subnet
from tests.planner.test_pipeline import BUDGET, DEVICE, WORKLOAD, Files, additive, files, framed_for, sensitive_files

__all__ = ["files"]  # a fixture

WIDE = Budget(300_000_000)


def searched(framed: Framed, proposed: Proposed) -> Proposed:
    clock = iter(range(1000))
    search = FrontSearch(20.0, clock=lambda: float(next(clock)), points=25)
    return searched_front(with_aims(framed), framed.costs.spec, proposed, search)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    files, runtimes = sensitive_files(tmp_path_factory.mktemp("supernet")), (RUNTIMES["onnxruntime"](),)
    return pipeline.plan_any(
        files, runtimes, DEVICE, WORKLOAD, WIDE, additive(files), trials=0, deepen=searched, drawn=True
    )


def test_no_point_beats_another_and_the_plan_is_one(made: Plan) -> None:
    points = [(point.memory_bytes, point.tpot_ms or 0.0, point.kl) for point in made.front]
    assert 5 < len(points) <= SHOWN + len(made.compared) and points == sorted(points)
    for number, one in enumerate(points):
        rivals = points[:number] + points[number + 1 :]
        assert not any(all(a <= b for a, b in zip(rival, one, strict=True)) for rival in rivals)
    assert all(point.measured for point in made.front)
    assert made.chosen.kl == min(point.kl for point in made.front)
    assert (made.chosen.memory_bytes, made.chosen.tpot_ms, made.chosen.kl) in points
    assert Plan.from_json(made.to_json()).front == made.front
    uniform = {one.memory_bytes: one for one in made.rejected if one.kind == UNIFORM}
    alone = [point for point in made.front if point.source.startswith("uniform")]
    assert any(point.memory_bytes in uniform for point in alone)
    for point in alone:  # one subnet is not predicted in one row and measured in another
        assert point.memory_bytes not in uniform or uniform[point.memory_bytes].measured


def test_what_measured_best_of_the_front_is_the_plan(files: Files) -> None:
    """Even where no search thought so, on other text."""
    odd: list[Subnet] = []

    def deepen(framed: Framed, proposed: Proposed) -> Proposed:
        found = searched(framed, proposed)
        odd.append(framed.apart(found.front[-1][1].subnet))
        return found

    def measure(subnets: Sequence[Subnet]) -> list[Quality]:
        return [
            {"kl": 1e-6} if one in odd else loss for one, loss in zip(subnets, additive(files)(subnets), strict=True)
        ]

    runtimes = (RUNTIMES["onnxruntime"](),)
    found = pipeline.plan_any(files, runtimes, DEVICE, WORKLOAD, WIDE, measure, trials=0, deepen=deepen)
    assert [found.subnet] == odd and found.chosen.kl == 1e-6
    assert min(found.front, key=lambda point: point.kl).memory_bytes == found.chosen.memory_bytes


def test_time_is_an_aim_that_nothing_passes_where_no_limit_was_asked(files: Files) -> None:
    plain = with_aims(framed_for(files, WIDE))
    (time,) = [one for one in plain.resources if one.name == TPOT]
    slowest = max(plain.space.options, key=len)
    assert slowest and all(max(time.table[unit].values()) <= time.limit for unit, _ in plain.space)
    assert time.limit == time.constant + sum(max(time.table[unit].values()) for unit, _ in plain.space)
    asked = framed_for(files, replace(WIDE, tpot_ms=6.2))
    assert with_aims(asked) is asked.problem


def test_a_row_has_the_limits_that_its_subnet_takes_and_the_page_its_place(made: Plan) -> None:
    for row, point in zip(front(made), made.front, strict=True):
        _, memory, _, time = row[-1].split()
        for said, taken, name in (
            (parse_bytes(memory), point.memory_bytes, MEMORY),
            (parse_duration(time), point.tpot_ms or 0.0, TPOT),
        ):
            assert 1.0 <= said / (taken * (1 + made.bands[name])) < 1.002
    assert [row[0] for row in front(made)].count(f"{made.chosen.mean_bits:.2f} bits, the plan") == 1
    page, shown = card(made), chart(made)
    assert all(f"<code>{row[-1]}</code>" in page for row in front(made)) and "The front" in page
    places = {(dot.x, dot.y) for dot in shown.dots}
    line = [tuple(map(float, pair.split(","))) for pair in shown.line.split()]
    assert len(line) > 3 and line == sorted(line) and [y for _, y in line] == sorted(y for _, y in line)
    assert {(round(x, 1), round(y, 1)) for x, y in line} <= {(round(x, 1), round(y, 1)) for x, y in places}


def test_the_row_of_a_tuned_plan_says_that_it_was_measured_before(made: Plan) -> None:
    kl = made.chosen.kl
    own = Tuned("a" * 64, 2, 0, "text", 1, 1, {"kl": kl})
    tuned = replace(made, compared=(replace(made.chosen, measured={"kl": kl / 2}), *made.compared[1:]), tuned=own)
    rows = {row[0] for row in front(tuned)}
    assert f"{made.chosen.mean_bits:.2f} bits, the plan before it was tuned" in rows
    assert [row[1:] for row in front(tuned)] == [row[1:] for row in front(made)]


def test_a_predicted_front_has_no_rows(files: Files) -> None:
    runtimes = (RUNTIMES["onnxruntime"](),)
    plain = pipeline.plan_any(files, runtimes, DEVICE, WORKLOAD, BUDGET, additive(files), trials=0, drawn=True)
    assert plain.front and front(plain) == [] and "the least that is predicted" in card(plain)


def test_what_was_measured_is_with_its_time() -> None:
    with pytest.raises(InputError, match="tpot_ms"):
        Point(1, 0.5, measured=True)
