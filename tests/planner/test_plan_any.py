"""Which runtime a device is planned for, where several could serve it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from planner import pipeline
from planner.fleet.fleetfile import Fleet, Wanted
from planner.fleet.plan import plan_fleet
from planner.plan import Plan
from planner.request import Asked, Budget
from planner.runtimes import AUTO, RUNTIMES, installed
from planner.runtimes.base import MemoryItem
from planner.runtimes.engine import Engine
from planner.runtimes.onnxruntime.pricing import OnnxPricing
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from records.errors import BudgetError, InputError, NotInstalledError
from supernet.space import Subnet
from tests.planner.test_pipeline import BUDGET, DEVICE, WORKLOAD, Files, additive, files

__all__ = ["files"]  # a fixture


class Uncached(OnnxPricing):
    def memory(self, subnet: Subnet) -> tuple[MemoryItem, ...]:
        return tuple(item for item in super().memory(subnet) if item.name != "KV cache")


class Light(OnnxRuntime):
    """Takes less memory beside the weights, and rounds activations in a way that has its price."""

    name = "light"
    activations = "int4"

    def pricing(self, *bound: Any) -> OnnxPricing:
        return Uncached(*bound)


class Absent(OnnxRuntime):
    name = "absent"

    def engine(self) -> Engine:
        raise NotInstalledError("absent needs a package; run: pip install it")


BOTH = OnnxRuntime(), Light()
plan, plan_any = partial(pipeline.plan, trials=5), partial(pipeline.plan_any, trials=5)


@pytest.mark.parametrize("measures", [True, False])
def test_the_runtime_that_loses_least_is_taken_and_the_other_is_a_row(files: Files, measures: bool) -> None:
    measure = additive(files) if measures else None
    made = plan_any(files, BOTH, DEVICE, WORKLOAD, BUDGET, measure)
    alone = {one.name: plan(files, one, DEVICE, WORKLOAD, BUDGET, measure) for one in BOTH}
    assert made.runtime == "light" and made.compared == alone["light"].compared
    (other,) = made.others
    chosen = alone["onnxruntime"].chosen
    assert (other.runtime, other.memory_bytes, other.tpot_ms) == ("onnxruntime", chosen.memory_bytes, chosen.tpot_ms)
    assert other.kl == chosen.measured.get("kl", chosen.predicted_kl) > made.chosen.predicted_kl
    assert Plan.from_json(made.to_json()).others == made.others and not alone["light"].others


def test_what_rounded_activations_cost_counts(files: Files) -> None:
    dear = replace(files, activations={"int4": 0.009, "int8": 0.0})
    made = plan_any(dear, BOTH, DEVICE, WORKLOAD, Budget(400_000_000), additive(files))
    free = plan_any(files, BOTH, DEVICE, WORKLOAD, Budget(400_000_000), additive(files))
    assert made.runtime == "onnxruntime" and made.others[0].kl == pytest.approx(free.chosen.measured["kl"] + 0.009)


def test_of_equals_the_faster_is_taken(files: Files) -> None:
    class Doubled(OnnxPricing):
        def latency(self, subnet: Subnet, phase: str) -> Any:
            return tuple(replace(item, ms=2 * item.ms) for item in super().latency(subnet, phase))

    class Slow(OnnxRuntime):
        name = "slow"

        def pricing(self, *bound: Any) -> OnnxPricing:
            return Doubled(*bound)

    for order in ((Slow(), OnnxRuntime()), (OnnxRuntime(), Slow())):
        made = plan_any(replace(files, activations={"int8": 0.001}), order, DEVICE, WORKLOAD, BUDGET)
        (other,) = made.others
        assert made.runtime == "onnxruntime" and other.kl == made.chosen.kl + 0.001 and other.reason == "slower"


def test_a_runtime_that_cannot_serve_is_a_row_with_its_reason(files: Files) -> None:
    class Elsewhere(OnnxRuntime):
        name, device_kinds = "elsewhere", ("metal",)

    tight = Budget(200_000_000)  # too little for what has a KV cache
    made = plan_any(files, (*BOTH, Elsewhere()), DEVICE, WORKLOAD, tight, absent={"absent": "not here"})
    assert made.runtime == "light"
    said = {other.runtime: other.refused for other in made.others}
    assert list(said) == ["onnxruntime", "elsewhere", "absent"]
    assert "memory of 200 MB cannot be met" in said["onnxruntime"] and "runs on metal" in said["elsewhere"]
    with pytest.raises(BudgetError, match="no runtime serves this: onnxruntime: memory of 1 MB .*; light: memory"):
        plan_any(files, BOTH, DEVICE, WORKLOAD, Budget(10**6))
    with pytest.raises(InputError, match="elsewhere runs on metal, not on cpu") as error:
        plan_any(files, (Elsewhere(),), DEVICE, WORKLOAD, BUDGET)
    assert "no runtime serves" not in str(error.value)


def test_what_is_not_installed_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, "absent", Absent)
    everywhere = installed()
    assert "absent" not in {one.name for one in everywhere.found}
    assert everywhere.missing["absent"].endswith("pip install it")
    here = everywhere.on(DEVICE)
    assert "onnxruntime" in {one.name for one in here.found} and here.missing["absent"].endswith("pip install it")
    gpu = everywhere.on(replace(DEVICE, kind="cuda"))
    assert all("cuda" in one.device_kinds for one in gpu.found) and not gpu.missing


def test_a_fleet_takes_each_device_s_best_runtime(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.runtimes.RUNTIMES", {"onnxruntime": OnnxRuntime, "light": Light, "absent": Absent})

    def runtime_of(name: str) -> Any:
        return {"onnxruntime": OnnxRuntime, "light": Light}[name]()

    def wanted(name: str, memory: int, runtime: str = AUTO) -> Wanted:
        return Wanted(name, name, replace(DEVICE, name=name), Budget(memory), runtime, Asked(512))

    devices = (wanted("tight", 200_000_000), wanted("named", 230_000_000, "onnxruntime"), wanted("none", 10**6))
    made = plan_fleet(files, Fleet(None, 0.05, devices), runtime_of, additive(files), trials=5)
    tight, named, none = made.members
    assert tight.plan is not None and named.plan is not None and none.plan is None
    assert (tight.plan.runtime, named.plan.runtime) == ("light", "onnxruntime")
    assert [package.kind.runtime for package in made.packages] == ["light", "onnxruntime"]
    assert list(made.absent) == ["absent"] and made.absent["absent"].endswith("pip install it")
    assert plan_fleet(files, Fleet(None, 0.05, devices[1:2]), runtime_of, trials=0).absent == {}
    assert none.refused.startswith("onnxruntime: memory of 1 MB") and "; light: memory of 1 MB" in none.refused
