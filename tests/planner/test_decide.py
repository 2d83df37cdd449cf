"""What is decided beside the weights, and what each decision is worth at the margin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from planner import pipeline
from planner.fleet.fleetfile import Fleet, Wanted
from planner.fleet.plan import plan_fleet
from planner.margins import said
from planner.plan import Margin, Plan
from planner.request import Asked, Budget
from planner.runtimes import RUNTIMES
from planner.runtimes.base import Runtime
from planner.runtimes.caches import CacheType
from planner.search import program
from records.errors import BudgetError, InputError, NotInstalledError
from tests.planner.test_pipeline import DEVICE, WORKLOAD, Files, files

__all__ = ["files"]  # a fixture


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are compared, so each is proven, however much else the machine does."""
    monkeypatch.setattr(program, "TIME_LIMIT_S", 100.0)


LOSS = {"int8": 0.004, "q8_0": 0.002, "q4_0": 0.05}
LONG = replace(WORKLOAD, context=2048)
TIGHT, ROOMY = Budget(300_000_000), Budget(10**9)


def lost(runtime: Runtime, cache: CacheType) -> float:
    return LOSS[cache.name]


def planned(files: Files, kv_cache: str | None, budget: Budget = TIGHT, **options: Any) -> Plan:
    workload = replace(LONG, kv_cache=kv_cache)
    given = {"trials": 0, "cache_loss": lost, **options}
    return pipeline.plan_any(files, (RUNTIMES["onnxruntime"](),), DEVICE, workload, budget, **given)


def loss(made: Plan) -> float:
    assert made.kv_cache is not None
    return made.chosen.predicted_kl + (made.kv_cache["kl"] or 0.0)


@pytest.mark.parametrize("asked", ["auto", "f32,int8", "q8_0,int8,f32"])
def test_what_loses_least_with_the_weights_is_decided(files: Files, asked: str) -> None:
    fixed = {name: planned(files, name) for name in ("f32", "int8")}
    made = planned(files, asked)
    assert loss(fixed["int8"]) < loss(fixed["f32"])
    assert made.workload.kv_cache == "int8" and made.compared == fixed["int8"].compared
    assert made.kv_cache == {"type": "int8", "bits": 8.0, "kl": 0.004}
    assert Plan.from_json(made.to_json()) == made
    roomy = planned(files, asked, ROOMY)
    assert (roomy.workload.kv_cache, roomy.kv_cache) == (None, {"type": "f32", "bits": 32.0, "kl": 0.0})


@pytest.mark.parametrize(("asked", "only"), [("f32,q8_0", None), ("q4_0,int8", "int8")])
def test_a_list_of_which_one_runtime_has_one_type_is_that_type(files: Files, asked: str, only: str | None) -> None:
    made, alone = (planned(files, kv_cache, ROOMY) for kv_cache in (asked, only))
    assert made.workload.kv_cache == only
    assert (made.compared, made.kv_cache) == (alone.compared, alone.kv_cache)


def test_a_type_that_loses_more_than_it_frees_is_not_taken(files: Files) -> None:
    made = planned(files, "auto", cache_loss=lambda runtime, cache: 100.0)
    assert made.workload.kv_cache is None and made.compared == planned(files, "f32").compared


def test_a_limit_that_only_a_smaller_cache_keeps_is_kept(files: Files) -> None:
    tight = Budget(planned(files, "int8").compared[0].memory_bytes - 40_000_000)
    with pytest.raises(BudgetError, match=r"cannot be met.* \(--kv-cache int8 would keep the limits\); use --mem"):
        planned(files, "f32", tight)
    assert planned(files, "auto", tight).workload.kv_cache == "int8"
    with pytest.raises(BudgetError, match="the smallest plan needs") as short:
        planned(files, "auto", Budget(10**6))
    with pytest.raises(BudgetError, match="the smallest plan needs") as alone:
        planned(files, "int8", Budget(10**6))
    assert str(short.value) == str(alone.value)


@pytest.mark.parametrize("unknown", [None, InputError("it does not say"), NotInstalledError("no torch")])
def test_what_a_type_loses_must_be_known_to_take_it(files: Files, unknown: Exception | None) -> None:
    def cannot(runtime: Runtime, cache: CacheType) -> float:
        assert unknown is not None
        raise unknown

    given = None if unknown is None else cannot
    made, asked = planned(files, "auto", cache_loss=given), planned(files, "int8", cache_loss=given)
    why = "nothing is measured for this plan" if unknown is None else str(unknown)
    assert made.workload.kv_cache is None
    assert f"what int8 keys and values lose is not known ({why}): not taken" in made.notes
    assert asked.kv_cache == {"type": "int8", "bits": 8.0, "kl": None}
    assert any(f"lose is not known ({why}): no KL of this plan has it" in note for note in asked.notes)


def test_several_runtimes_are_compared_with_what_their_caches_lose(files: Files) -> None:
    class Other(type(RUNTIMES["onnxruntime"]())):  # type: ignore[misc]
        name = "other"

    def dear(runtime: Runtime, cache: CacheType) -> float:
        return 0.004 if runtime.name == "onnxruntime" else 0.003

    both = RUNTIMES["onnxruntime"](), Other()
    workload = replace(LONG, kv_cache="int8")
    made = pipeline.plan_any(files, both, DEVICE, workload, TIGHT, trials=0, cache_loss=dear)
    assert made.runtime == "other"
    assert made.others[0].kl == pytest.approx(made.chosen.predicted_kl + 0.004)


def test_each_device_of_a_fleet_decides_by_itself(files: Files) -> None:
    def wanted(name: str, memory: int) -> Wanted:
        return Wanted(
            name, name, replace(DEVICE, name=name), Budget(memory), "onnxruntime", Asked(2048, kv_cache="auto")
        )

    asked = Fleet(None, 0.05, (wanted("tight", TIGHT.memory_bytes), wanted("roomy", ROOMY.memory_bytes)))
    made = plan_fleet(files, asked, lambda name: RUNTIMES[name](), trials=0, cache_loss=lost)
    assert [one.plan and one.plan.workload.kv_cache for one in made.members] == ["int8", None]
    assert [one.kind.kv_cache for one in made.packages] == ["int8", None]


def test_margins_are_the_differences_of_plans(files: Files) -> None:
    tight = Budget(240_000_000)
    longer = replace(LONG, context=3072, kv_cache="int8")
    made = {budget: planned(files, "auto", budget) for budget in (TIGHT, tight)}
    other = {
        (TIGHT, "f32"): planned(files, "f32"),
        (tight, "3072"): pipeline.plan(files, RUNTIMES["onnxruntime"](), DEVICE, longer, tight, trials=0),
    }
    for (budget, option), then in other.items():
        now, (one,) = made[budget], [one for one in made[budget].margins if one.option == option]
        assert one.weights_kl == pytest.approx(then.chosen.predicted_kl - now.chosen.predicted_kl, abs=1e-6)
        beside = [sum(item.bytes for item in plan.memory.items if item.unit is None) for plan in (then, now)]
        assert one.memory_bytes == beside[0] - beside[1] > 0
        took = [sum(item.ms for item in plan.latency.prefill if item.unit is None) for plan in (then, now)]
        assert one.ttft_ms == pytest.approx(took[0] - took[1], abs=1e-6)
        assert one.weights_kl > 0 and one.own_kl == {"f32": -0.004, "3072": 0}[option]
    (never,) = [one for one in made[tight].margins if one.option == "f32"]
    assert never.weights_kl is None
    assert planned(files, "auto", ROOMY).margins == ()


def test_margins_that_might_be_none_are_not_said(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where time runs out, a difference of sums that were not proven may be that of two searches."""
    monkeypatch.setattr(program, "TIME_LIMIT_S", 1e-9)
    made = planned(files, "int8", Budget(240_000_000))
    assert [one.option for one in made.margins] == ["f32"] and made.margins[0].weights_kl is None


def test_margins_are_lines() -> None:
    lines = [
        said(Margin(*values))
        for values in (
            ("context", "4096", "6144", 24_000_000, 0.0, 0.03),
            ("context", "4096", "6144", 24_000_000, 0.0, None),
            ("kv-cache", "f16", "q8_0", -90_000_000, 0.001, -0.02, 0.1, 120.0),
            ("kv-cache", "f16", "q4_0", -90_000_000, None, -0.02),
            ("kv-cache", "q8_0", "f16", 90_000_000, -0.001, 0.05),
        )
    ]
    assert lines == [
        "2048 more tokens of context take 24 MB: KL 0.0300 more (predicted)",
        "2048 more tokens of context take 24 MB: nothing would keep the limits",
        "q8_0 keys and values would free 90 MB, take 120 ms more to the first token and lose 0.0010 more themselves: "
        "KL in all 0.0190 less (predicted)",
        "q4_0 keys and values would free 90 MB: KL of the weights 0.0200 less (predicted); --kv-cache auto "
        "measures theirs",
        "f16 keys and values would take 90 MB and lose 0.0010 less themselves: KL in all 0.0490 more (predicted)",
    ]
