"""Many devices through the four stages: each as it would be planned alone, and the fewest packages among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner import pipeline
from planner.fleet import plan as fleet_plan
from planner.fleet.fleetfile import Fleet, Wanted
from planner.fleet.plan import FleetPlan, plan_fleet
from planner.limits import MEMORY
from planner.plan import Plan
from planner.promise import Promise
from planner.quality import Quality
from planner.request import Asked, Budget, ContextRange, Workload
from planner.runtimes import RUNTIMES
from planner.scenario import Scenario
from profiles.catalog import load
from records.errors import InputError
from supernet.space import Subnet
from tests.planner.test_pipeline import DEVICE, Files, additive, files

__all__ = ["files"]  # a fixture


def runtime_of(name: str) -> Any:
    return RUNTIMES[name]()


def wanted(
    name: str, memory: int, context: int | ContextRange = 512, tpot_ms: float | None = None, **more: Any
) -> Wanted:
    return Wanted(
        name, name, replace(DEVICE, name=name), Budget(memory, tpot_ms), "onnxruntime", Asked(context, **more)
    )  # fmt: skip


def planned(files: Files, *devices: Wanted, max_loss: float = 0.05, **options: Any) -> FleetPlan:
    options = {"measure": additive(files), **options}
    return plan_fleet(files, Fleet(None, max_loss, devices), runtime_of, **options)


def test_a_fleet_of_one_is_planned_as_one_device_is(files: Files) -> None:
    alone = pipeline.plan(files, runtime_of("onnxruntime"), DEVICE, Workload(512), Budget(226_000_000), additive(files))
    (member,) = planned(files, wanted("box", 226_000_000), trials=pipeline.TRIALS).members
    assert member.plan is not None
    assert member.plan.compared == alone.compared and member.plan.memory == alone.memory
    assert member.best == alone.subnet and member.kl == member.best_kl


def test_every_device_keeps_its_budget_and_is_near_its_own_best(files: Files) -> None:
    budgets = [215, 218, 221, 224, 227, 230, 240, 260, 300]
    made = planned(files, *(wanted(f"d{mb}", mb * 10**6) for mb in budgets), max_loss=0.5)
    assert made.problems == len(budgets) and made.gap == 0 and len(made.packages) < len(budgets)
    for member in made.members:
        assert member.plan is not None
        assert member.plan.chosen.memory_bytes * (1 + member.plan.bands[MEMORY]) <= member.wanted.budget.memory_bytes
        assert member.kl <= 1.5 * member.best_kl * (1 + 1e-9)
    names = [name for package in made.packages for name in package.plans]
    assert sorted(names) == sorted(f"d{mb}" for mb in budgets)
    for package in made.packages:
        assert {plan.subnet for plan in package.plans.values()} == {package.subnet}


def test_more_may_be_lost_by_fewer_packages(files: Files) -> None:
    devices = [wanted(f"d{mb}", mb * 10**6) for mb in (216, 228, 240)]
    counts = [len(planned(files, *devices, max_loss=share).packages) for share in (0.0, 1.0, 1000.0)]
    assert counts[0] == 3 and counts[-1] == 1 and counts == sorted(counts, reverse=True)


def test_a_plan_that_shares_says_what_that_costs_and_reads_back_as_it_was_written(files: Files) -> None:
    """What is there already is known by its plan: where that did not read back equal, it would be written anew."""

    def measure(subnets: Sequence[Subnet]) -> list[Quality]:
        return [
            {"kl": quality["kl"], "texts": {"prose": {**quality, "windows": 8}}} for quality in additive(files)(subnets)
        ]

    devices = [wanted(f"d{mb}", mb * 10**6) for mb in (216, 228)]
    made = planned(files, *devices, max_loss=1000.0, measure=measure)
    assert len(made.packages) == 1
    notes = [" ".join(member.plan.notes if member.plan else ()) for member in made.members]
    assert "shared with other devices" not in notes[0] and "KL " in notes[0]
    best = made.members[1].best_kl
    assert f"shared with other devices: KL {made.members[1].kl:.4g}, {best:.4g} with this device's" in notes[1]
    for member in made.members:
        assert member.plan is not None
        plan, promise = member.plan.portable(), Promise.of(member.plan)
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        assert Promise.from_json(json.loads(json.dumps(promise.to_json()))) == promise


def test_devices_alike_are_one_problem_and_each_subnet_is_measured_once(files: Files) -> None:
    seen: list[Subnet] = []

    def measure(subnets: Sequence[Subnet]) -> list[Quality]:
        seen.extend(subnets)
        found: list[Quality] = additive(files)(subnets)
        return found

    made = planned(files, *(wanted(f"d{n}", 226_000_000 + 8 * 10**6 * (n % 2)) for n in range(6)), measure=measure)
    assert made.problems == 2
    assert len(seen) == len(set(seen)) > 2


def test_problems_searched_side_by_side_are_as_one_after_the_other(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [wanted(f"d{mb}", mb * 10**6) for mb in (216, 222, 228, 234)]
    side_by_side = planned(files, *devices)
    monkeypatch.setattr(fleet_plan, "ALONE", 10)
    assert [m.plan and m.plan.compared for m in planned(files, *devices).members] == [
        m.plan and m.plan.compared for m in side_by_side.members
    ]


def test_contexts_do_not_share(files: Files) -> None:
    made = planned(files, wanted("short", 300_000_000), wanted("long", 300_000_000, context=2048))
    assert [package.kind.context for package in made.packages] == [512, 2048]
    assert len({package.name for package in made.packages}) == 2


def test_a_device_that_cannot_be_served_stops_nobody(files: Files) -> None:
    made = planned(
        files,
        wanted("small", 90_000_000),
        wanted("box", 226_000_000),
        Wanted("gpu", "l4-24gb", load("l4-24gb"), Budget(10**9), "onnxruntime"),
        wanted("far", 300_000_000, context=10_000),
        wanted("fast", 300_000_000, tpot_ms=0.5),
    )
    assert [member.wanted.name for member in made.refused] == ["small", "gpu", "far", "fast"]
    small, gpu, far, fast = (member.refused for member in made.refused)
    assert small.startswith("memory of 90 MB cannot be met, the smallest plan needs ") and 'use mem = "' in small
    assert "runs on cpu, not on cuda, got gpu" in gpu and "at most the 8192 tokens" in far
    assert 'use latency = "' in fast
    enough = float(small.rsplit('"', 2)[1].removesuffix("MB")) * 10**6
    assert not planned(files, wanted("small", round(enough))).refused


def test_the_predictions_decide_where_nothing_is_measured(files: Files) -> None:
    made = planned(files, wanted("a", 226_000_000), wanted("b", 240_000_000), measure=None)
    for member in made.members:
        assert member.plan is not None and member.plan.chosen.measured == {}
        assert member.kl == member.plan.chosen.predicted_kl


def test_the_names_of_packages_follow_from_their_content_alone(files: Files, tmp_path: Path) -> None:
    one = planned(files, wanted("a", 226_000_000, prompt_tokens=10))
    other = planned(files, wanted("b", 226_000_000, prompt_tokens=100), wanted("c", 300_000_000, context=1024))
    assert one.packages[0].name == other.packages[0].name


def test_measured_devices_of_other_threads_do_not_share(files: Files) -> None:
    """What is promised of them was measured with their own."""
    two, four = (replace(wanted("d", 300_000_000), name=f"t{n}", profile=replace(DEVICE, threads=n)) for n in (2, 4))
    made = planned(files, two, four)
    assert [package.kind.threads for package in made.packages] == [2, 4]
    assert len({package.name for package in made.packages}) == 2
    unmeasured = [replace(w, profile=replace(w.profile, measured=False)) for w in (two, four)]
    assert len(planned(files, *unmeasured).packages) == 1


def test_devices_whose_caches_differ_do_not_share(files: Files) -> None:
    """Who names the type that the runtime has unasked takes the same package as who names none."""
    asked = {
        name: wanted(name, 300_000_000, kv_cache=kind) for name, kind in (("a", None), ("b", "f32"), ("c", "int8"))
    }
    made = planned(files, *asked.values(), wanted("d", 300_000_000, kv_cache="q8_0"))
    assert [(p.kind.kv_cache, [m.wanted.name for m in p.members]) for p in made.packages] == [
        (None, ["a", "b"]), ("int8", ["c"]),
    ]  # fmt: skip
    assert made.packages[0].name == planned(files, asked["b"]).packages[0].name != made.packages[1].name
    floats, rounded = (made.members[number].plan for number in (1, 2))
    assert floats is not None and rounded is not None
    assert (floats.kv_cache, rounded.kv_cache) == (
        {"type": "f32", "bits": 32.0, "kl": 0.0},
        {"type": "int8", "bits": 8.0, "kl": None},
    )
    kept = [sum(item.bytes for item in plan.memory.items if item.name == "KV cache") for plan in (floats, rounded)]
    assert kept[0] == 4 * kept[1] > 0
    assert made.members[3].refused.startswith("onnxruntime keeps a KV cache as f32, int8, got 'q8_0'")


def test_a_subnet_proposed_for_another_context_may_serve(files: Files) -> None:
    """Losses do not depend on the context: what is best anywhere within the limits is a device's own best."""
    seen = planned(files, wanted("short", 226_000_000), wanted("long", 226_000_000 + 40 * 10**6, context=1024))
    alone = [planned(files, m.wanted).members[0] for m in seen.members]
    assert all(m.best_kl <= a.best_kl * (1 + 1e-9) for m, a in zip(seen.members, alone, strict=True))


def test_a_supernet_that_was_never_priced_says_so(files: Files) -> None:
    (member,) = planned(files, wanted("box", 226_000_000)).members
    assert member.plan is not None and any("int8 activations cost" in note for note in member.plan.notes)
    (member,) = planned(replace(files, activations={"int8": 1e-4}), wanted("box", 226_000_000)).members
    assert member.plan is not None and not any("int8 activations cost" in note for note in member.plan.notes)


def test_devices_that_differ_in_their_names_alone_are_framed_once_and_planned_as_each_alone(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    framed: list[str] = []
    decided = fleet_plan.decided

    def counted(scenario: Scenario, *more: Any) -> Any:
        framed.append(scenario.device.name)
        return decided(scenario, *more)

    monkeypatch.setattr(fleet_plan, "decided", counted)
    much = 2 * DEVICE.usable_bytes  # so that a note names the device
    made = planned(files, *(wanted(name, much) for name in "abc"), wanted("d", 226_000_000))
    assert framed == ["a", "d"]
    for member in made.members:
        (alone,) = planned(files, member.wanted).members
        assert member.plan is not None and alone.plan is not None
        assert replace(member.plan, date="", search=()) == replace(alone.plan, date="", search=())
        assert member.plan.device["name"] == member.wanted.name


def test_a_supernet_that_no_device_can_mend_is_an_error(files: Files) -> None:
    with pytest.raises(InputError, match="weights that have changed since"):
        planned(replace(files, fingerprint="f2"), wanted("a", 226_000_000))
    with pytest.raises(InputError, match="deploy as a side path"):
        planned(replace(files, deploys="side"), wanted("a", 226_000_000))


def test_a_device_of_unknown_speed_is_refused_and_stops_nobody(files: Files) -> None:
    profile = replace(DEVICE, name="bare", bandwidth_bytes_per_s=None, bandwidth_basis=None, int8_ops_per_s=None)
    bare = Wanted("bare", "bare", profile, Budget(300_000_000), "onnxruntime", Asked(512))
    made = planned(files, bare, wanted("box", 300_000_000))
    assert [member.wanted.name for member in made.refused] == ["bare"]
    assert "needs a measured or published speed" in made.refused[0].refused
