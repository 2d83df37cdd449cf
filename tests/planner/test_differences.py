"""Two plans side by side."""

from __future__ import annotations

from dataclasses import replace

from planner.differences import differences
from planner.request import Budget
from tests.planner.test_pipeline import BUDGET, Files, files, planned

__all__ = ["files"]  # a fixture


def test_what_differs_is_named_with_both_values(files: Files) -> None:
    small, large = planned(files, BUDGET), planned(files, Budget(240_000_000, tpot_ms=9.0))
    found = differences(small, large)
    by_name = {(line.group, line.name): line for line in found.lines}
    assert by_name["limit", "peak memory"].values == (228_000_000, 240_000_000)
    assert by_name["limit", "peak memory"].change == 240 / 228 - 1
    assert by_name["limit", "time per token"].values == (None, 9.0)
    assert by_name["limit", "time per token"].change is None and by_name["limit", "time per token"].differs
    assert by_name["promise", "peak memory"].values == (small.chosen.memory_bytes, large.chosen.memory_bytes)
    assert by_name["loses", "KL, measured"].values == (small.chosen.measured["kl"], large.chosen.measured["kl"])
    assert not by_name["asked", "runtime"].differs
    units = [unit for unit, choice in small.subnet if large.subnet[unit] != choice]
    assert [unit for unit, _, _ in found.units] == units and found.count == len(files.spec.units)
    assert found.verdict == f"{len(units)} of {len(files.spec.units)} units differ"
    assert [role for role, _, _ in found.bits] == [role for role in small.bits if small.bits[role] != large.bits[role]]
    as_json = found.to_json()
    assert as_json["units"][0] == {
        "unit": units[0], "choices": [str(small.subnet[units[0]]), str(large.subnet[units[0]])]
    }  # fmt: skip


def test_a_plan_does_not_differ_from_itself(files: Files) -> None:
    made = planned(files, BUDGET)
    found = differences(made, made)
    assert not any(line.differs for line in found.lines) and (found.units, found.bits) == ((), ())
    assert found.verdict == "both have the same bits everywhere"


def test_plans_of_other_models_are_compared_by_their_numbers(files: Files) -> None:
    made = planned(files, BUDGET)
    renamed = replace(made.subnet, items=tuple((f"other.{unit}", choice) for unit, choice in made.subnet))
    found = differences(made, replace(made, compared=(replace(made.chosen, subnet=renamed),)))
    assert (found.units, found.count) == ((), 0) and "their models differ" in found.verdict
