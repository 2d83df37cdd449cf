"""GPUs with the machines that they are in, and open contexts, in a fleet: each planned as it would be alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner import pipeline
from planner.fleet.compare import compared
from planner.fleet.fleetfile import Fleet, Wanted
from planner.fleet.index import CHECKS, HOST_MEMORY, Device, Index, Listed, Served, slots_of
from planner.fleet.plan import FleetPlan, plan_fleet
from planner.fleet.receipts import Receipt, accept
from planner.promise import Promise
from planner.request import Asked, Budget, ContextRange, Workload
from planner.rows import Row
from planner.search import program
from profiles.device import DeviceProfile
from tests.planner.fleet.example import index
from tests.planner.test_pipeline import Files
from tests.planner.test_placement import COUNTED, GPU, HOSTED, LONG, PC, Llama, Symmetric, tight

TIGHT = tight()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setattr(program, "TIME_LIMIT_S", 100.0)  # sums are compared, so each is proven
    return Symmetric(tmp_path).files


def wanted(name: str, budget: Budget = TIGHT, device: DeviceProfile = HOSTED, **asked: Any) -> Wanted:
    return Wanted(name, name, device, budget, "llamacpp", Asked(asked.pop("context", LONG.context), **asked))


def planned(files: Files, *devices: Wanted) -> FleetPlan:
    return plan_fleet(files, Fleet(None, 0.05, devices), lambda name: Llama(), trials=0)


def test_a_hosted_gpu_is_planned_as_alone(files: Files) -> None:
    device = replace(HOSTED, name="box")
    alone = pipeline.plan_any(files, (Llama(),), device, LONG, TIGHT, trials=0)
    (member,) = planned(files, wanted("box")).members
    assert member.plan is not None and alone.placement is not None
    assert 1 < alone.placement["gpu_layers"] < COUNTED
    assert (member.plan.compared, member.plan.limits) == (alone.compared, alone.limits)
    assert (member.plan.workload, member.plan.placement) == (alone.workload, alone.placement)
    assert Promise.of(member.plan).in_place_of(alone).chosen.host_bytes == alone.chosen.host_bytes


def test_packages_are_shared_by_devices_with_as_many_layers_on_the_gpu(files: Files) -> None:
    roomy = replace(TIGHT, host_memory_bytes=10**9)
    made = planned(
        files, wanted("a"), wanted("b", roomy, gpu_layers=1), wanted("c"), wanted("d", roomy, gpu_layers=1)
    )  # fmt: skip
    found = [(package.kind.gpu_layers, list(package.plans)) for package in made.packages]
    assert [devices for _, devices in found] == [["a", "c"], ["b", "d"]] and found[1][0] == 1 != found[0][0]
    assert len({package.name for package in made.packages}) == 2


@pytest.mark.parametrize(
    ("device", "why"),
    [
        (wanted("a", Budget(700_000_000), GPU), "name the machine that a is in with host: layers that do not fit stay"),
        (wanted("a", Budget(10**9, host_memory_bytes=10**8)), 'needs 3.* MB of host memory; use host-mem = "3'),
        (
            wanted("a", Budget(10**9), replace(GPU, host=replace(PC, memory_bytes=10**8))),
            "the machine of a has no more: free some, use a shorter context, or name another host",
        ),
        (wanted("a", Budget(10**9), gpu_layers=32), "layers of small on a: 1 to 9, got gpu-layers = 32"),
        (wanted("a", Budget(10**9), GPU, gpu_layers=4), "all 9; name the others' host, got gpu-layers = 4"),
        (wanted("a", context=ContextRange(4096, 10**6)), "at most the 8192 tokens of small, got 1000000; use context"),
    ],
)
def test_what_cannot_be_is_a_line_and_stops_nobody(files: Files, device: Wanted, why: str) -> None:
    made = planned(files, device, wanted("b"))
    (refused,) = made.refused
    assert refused.wanted.name == "a" and "\n" not in refused.refused and "--" not in refused.refused
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(refused.refused)


def test_an_open_context_is_the_longest_for_each_device(files: Files) -> None:
    contexts = ContextRange(512, 8192)
    budgets = {name: replace(TIGHT, memory_bytes=TIGHT.memory_bytes + more) for name, more in (("a", 0), ("b", 10**8))}
    made = planned(files, *(wanted(name, budget, context=contexts) for name, budget in budgets.items()))
    alone = [
        pipeline.plan_any(
            files, (Llama(),), replace(HOSTED, name=name), Workload(512), budget, trials=0, contexts=contexts
        ).workload
        for name, budget in budgets.items()
    ]
    assert [member.workload for member in made.members] == alone
    assert {package.kind.context for package in made.packages} == {one.context for one in alone}


def with_host() -> tuple[Index, Served, Listed]:
    made = index()
    device, package = made.devices[0], made.packages[0]
    hosted = replace(
        device, device=Device.of(HOSTED), budget=Budget(10**9, host_memory_bytes=5 * 10**9),
        host_memory_bytes=3 * 10**9, layers=31,
    )  # fmt: skip
    slots = (*slots_of(package, hosted), *(slot for slot in made.slots if slot.device != hosted.name))
    return replace(made, devices=(hosted, *made.devices[1:]), slots=slots), hosted, package


def test_memory_of_a_host_is_promised_and_limited(tmp_path: Path) -> None:
    made, hosted, package = with_host()
    assert hosted.device.host == PC.model
    assert [slot.check for slot in slots_of(package, hosted)] == list(CHECKS)
    (slot,) = (slot for slot in slots_of(package, hosted) if slot.check == HOST_MEMORY)
    assert (slot.limit, slot.promised, slot.band, slot.unit) == (5e9, 3e9, 0.05, "bytes")
    assert HOST_MEMORY not in [slot.check for slot in made.slots if slot.device != hosted.name]
    made.save(tmp_path)
    assert Index.load(tmp_path) == made
    bigger = replace(made, devices=(replace(hosted, host_memory_bytes=4 * 10**9), *made.devices[1:]))
    (difference,) = compared(bigger, made, 0.02)
    assert difference.line.startswith(f"{hosted.name}: bigger, host memory 3.0 GB -> 4.0 GB, +33.3%")


@pytest.mark.parametrize(
    ("measured", "on", "state"), [(3.1e9, True, "holds"), (3.2e9, True, "BROKEN"), (3.1e9, False, "elsewhere")]
)
def test_memory_of_a_host_counts_where_the_device_is(measured: float, on: bool, state: str) -> None:
    made, hosted, package = with_host()
    receipt = Receipt(
        package.name, package.manifest_sha256, {name: entry.sha256 for name, entry in package.files.items()}, "planned",
        Device.of(PC), {}, "2026-12-02T08:00:00+00:00", (Row(HOST_MEMORY, "bytes", 3e9, measured),),
        hosted.name if on else "",
    )  # fmt: skip
    (slot,) = (slot for slot in accept(made, [receipt]).slots if slot.check == HOST_MEMORY)
    assert (slot.measured, slot.state) == (measured, state)
