"""A package for several devices: its manifest has what each is promised, and none of it is believed unread."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.package import MANIFEST, Package, open_package, promises_of, write_manifest
from planner.plan import Plan
from planner.promise import Promise
from planner.request import Budget, Workload
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from records.errors import InputError
from supernet.space import Choice, Subnet

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from fuzz_readers import SHAPE, random_package_of

RUNTIME = OnnxRuntime()
FIRST = "first"


def of(plan: Plan, name: str, memory_bytes: int, **changes: Any) -> Plan:
    """The same plan for a device of that name, which is promised so much."""
    chosen = replace(plan.chosen, memory_bytes=memory_bytes)
    return replace(plan, device={**plan.device, "name": name}, compared=(chosen,), **changes)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """For three devices, `first` among them."""
    made = random_package_of(SHAPE, Subnet.of({u.name: Choice(8, 32) for u in SHAPE.spec().units}), tmp_path / "p")
    opened = open_package(made)
    plan = of(opened.plan, FIRST, 10**8)
    workload = Workload(plan.workload.context, 1, 7)
    others = {
        "z": of(plan, "z", 2 * 10**8),
        "a": of(plan, "a", 3 * 10**8, workload=workload, budget=Budget(4 * 10**8, tpot_ms=1.5)),
    }
    write_manifest(made, RUNTIME, plan, promises_of(others), opened.files)
    return open_package(made)


def test_each_device_has_its_own_promises(package: Package) -> None:
    assert package.devices == (FIRST, "a", "z")
    assert [package.promised_to(name).plan.chosen.memory_bytes for name in package.devices] == [
        10**8,
        3 * 10**8,
        2 * 10**8,
    ]
    held = package.promised_to("a").plan
    assert (held.device["name"], held.workload.prompt_tokens, held.budget.tpot_ms) == ("a", 7, 1.5)
    assert (held.subnet, held.fingerprint) == (package.plan.subnet, package.plan.fingerprint)
    assert package.promised_to(FIRST) is package
    with pytest.raises(InputError, match=f"is made for {FIRST}, a, z, got 'other'; give one of them"):
        package.promised_to("other")


def test_a_promise_round_trips(package: Package) -> None:
    for promise in package.promises.values():
        assert Promise.from_json(json.loads(json.dumps(promise.to_json()))) == promise


def test_a_manifest_does_not_depend_on_the_order_of_devices(package: Package) -> None:
    plans = {name: package.promised_to(name).plan for name in ("a", "z")}
    backwards = dict(reversed(plans.items()))
    assert json.dumps([p.to_json() for p in promises_of(plans).values()]) == json.dumps(
        [p.to_json() for p in promises_of(backwards).values()]
    )
    assert list(promises_of(backwards)) == ["a", "z"]


@pytest.mark.parametrize(
    "change",
    [
        lambda promise: promise.update(memory_bytes=0),
        lambda promise: promise.update(memory_bytes=True),
        lambda promise: promise.update(tpot_ms=-1.0),
        lambda promise: promise.update(ttft_ms=None),
        lambda promise: promise.update(more=1),
        lambda promise: promise.pop("bands"),
        lambda promise: promise["bands"].clear(),
        lambda promise: promise["bands"].update(tpot=2.0),
        lambda promise: promise["workload"].update(context=0),
        lambda promise: promise["budget"].update(memory_bytes=-1),
        lambda promise: promise["device"].update(kernels=5 * [_KERNEL]),
        lambda promise: promise["device"].update(kernels=[{**_KERNEL, "in_features": 2**30}]),
        lambda promise: promise["workload"].update(context=2**40),
    ],
    ids=range(13),
)
def test_what_is_no_promise_is_refused(package: Package, change: Callable[[Any], Any]) -> None:
    manifest = package.path / MANIFEST
    data = json.loads(manifest.read_text())
    change(data["promises"]["a"])
    manifest.write_text(json.dumps(data))
    with pytest.raises(InputError) as error:
        open_package(package.path).promised_to("a").check(RUNTIME)
    assert "\n" not in str(error.value)


_KERNEL = {"runtime": "onnxruntime", "bits": 4, "group_size": 32, "rows": 1, "in_features": 64, "out_features": 64,
           "threads": 1, "median_ms": 0.1, "p10_ms": 0.1, "p90_ms": 0.1, "repeats": 3}  # fmt: skip
