from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from planner.bands import BANDS, DATASHEET, QUICK, bands
from planner.choose import device_summary
from planner.latency import LatencyEstimate
from planner.memory import MemoryEstimate
from planner.plan import Compared, DeviceSummary, Margin, Plan
from planner.quality import Measured
from planner.request import Budget, Workload
from planner.runtimes.base import LatencyItem, MemoryItem
from profiles.device import DeviceProfile
from profiles.kernels import KernelEntry, KernelTable
from supernet.space import Choice, Subnet

SUBNET = Subnet.of({"a": Choice(2, 32), "b": Choice(8, 32)})
MEASURED: Measured = {"kl": 0.3, "texts": {"held-out": {"kl": 0.3, "kl_interval": None, "tokens": 4096}}}
CHOSEN = Compared("planned", "exact", SUBNET, 2.0, 1000, 500, 5.0, 50.0, 0.25, MEASURED)
UNIFORM = Compared("uniform", "uniform 2 bits", SUBNET.replace("b", Choice(2, 32)), 2.0, 900, 400, 4.0, 40.0, 0.5)
DEVICE: DeviceSummary = {
    "name": "laptop", "kind": "cpu", "model": "A laptop", "measured": False, "source": "a datasheet",
    "date": "2026-11-22", "threads": 4, "memory_bytes": 8 * 10**9, "usable_bytes": 8 * 10**9,
}  # fmt: skip
MEMORY = MemoryEstimate((MemoryItem("a", 900, "exact", "a"), MemoryItem("runtime", 100, "measured")))
LATENCY = LatencyEstimate((LatencyItem("a", 50.0, "measured", "a"),), (LatencyItem("a", 5.0, "estimate", None, 0.1),))
MEMORY_TABLE = {
    "total_bytes": 1000, "basis": "measured",
    "items": [
        {"name": "a", "bytes": 900, "basis": "exact", "unit": "a", "pool": "device"},
        {"name": "runtime", "bytes": 100, "basis": "measured", "unit": None, "pool": "device"},
    ],
}  # fmt: skip
LATENCY_TABLE = {
    "ttft_ms": 50.0, "tpot_ms": 5.0, "basis": "estimate", "spread": 0.1,
    "prefill": [{"name": "a", "ms": 50.0, "basis": "measured", "unit": "a", "spread": 0.0}],
    "decode": [{"name": "a", "ms": 5.0, "basis": "estimate", "unit": None, "spread": 0.1}],
}  # fmt: skip
PLAN = Plan(
    supernet="/models/tiny", fingerprint="f1", model={"name": "tiny"}, runtime="onnxruntime",
    device=DEVICE, workload=Workload(512), budget=Budget(10**9, 20.0),
    limits=Budget(10**8, 20.0), compared=(CHOSEN, UNIFORM), memory=MEMORY, latency=LATENCY,
    search=({"solver": "HiGHS", "seconds": 0.1, "gap": 0.0},),
    dropped={"int3g32 of qkv": "only 2, 4 and 8 bits"}, notes=("a note",), versions={"optuna": "5.0.0"},
    date="2026-11-22T05:00:00+00:00", command="bitfleet plan --mem 1GB",
)  # fmt: skip

MARGIN = Margin("context", "512", "768", 10**6, None, 0.01)


def test_a_plan_round_trips_through_its_file(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == PLAN
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_margins_round_trip(tmp_path: Path) -> None:
    made = replace(PLAN, margins=(MARGIN, replace(MARGIN, decision="kv-cache", instead="f16", option="q8_0")))
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made


def test_estimates_are_tables_in_the_file_and_estimates_again_when_it_is_read(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["memory"] == MEMORY_TABLE and data["latency"] == LATENCY_TABLE
    assert Plan.load(tmp_path / "plan.json").latency.resting_on("measured").basis == "measured"


def test_the_first_compared_is_the_choice_and_the_uniform_is_named() -> None:
    assert PLAN.chosen == CHOSEN
    assert PLAN.subnet == SUBNET
    assert PLAN.uniform == UNIFORM
    assert replace(PLAN, compared=(CHOSEN,)).uniform is None


def test_a_failed_write_leaves_the_old_plan_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    PLAN.save(path)
    with pytest.raises(ValueError, match="JSON"):
        replace(PLAN, model={"layers": float("nan")}).save(path)
    assert Plan.load(path) == PLAN
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_missing_plan_is_one_line_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no plan at .*plan\.json; make it again with `bitfleet plan"):
        Plan.load(tmp_path / "plan.json")


def _without(key: str) -> dict[str, object]:
    return {k: v for k, v in PLAN.to_json().items() if k != key}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        json.dumps({**PLAN.to_json(), "schema": 99}),
        json.dumps({**PLAN.to_json(), "kind": "bitfleet package"}),
        json.dumps({**PLAN.to_json(), "compared": []}),
        json.dumps({**PLAN.to_json(), "compared": [{}]}),
        json.dumps({**PLAN.to_json(), "compared": [{**CHOSEN.to_json(), "subnet": {"a": "two bits"}}]}),
        json.dumps({**PLAN.to_json(), "compared": 3}),
        json.dumps({**PLAN.to_json(), "budget": {"memory_bytes": -1}}),
        json.dumps({**PLAN.to_json(), "budget": {"memory_bytes": "8GB"}}),
        json.dumps({**PLAN.to_json(), "workload": []}),
        json.dumps({**PLAN.to_json(), "surprise": 1}),
        json.dumps({**PLAN.to_json(), "memory": {**MEMORY_TABLE, "items": [{"name": "a"}]}}),
        json.dumps({**PLAN.to_json(), "latency": {**LATENCY_TABLE, "decode": 1}}),
        json.dumps({**PLAN.to_json(), "device": {**DEVICE, "name": 1}}),
        json.dumps({**PLAN.to_json(), "notes": [1]}),
        json.dumps({**PLAN.to_json(), "compared": [{**CHOSEN.to_json(), "memory_bytes": 0}]}),
        json.dumps({**PLAN.to_json(), "compared": [{**CHOSEN.to_json(), "tpot_ms": float("inf")}]}),
        *[
            json.dumps({**PLAN.to_json(), "margins": [{**asdict(MARGIN), "decision": decision, side: "\u202e"}]})
            for decision in ("context", "gpu-layers")
            for side in ("instead", "option")
        ],
        json.dumps({**PLAN.to_json(), "workload": {"context": 2**63}}),
        json.dumps(_without("workload")),
        json.dumps(_without("fingerprint")),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"plan\.json.*make it again with `bitfleet plan") as raised:
        Plan.load(path)
    assert "\n" not in str(raised.value)


def test_what_a_package_keeps_of_a_plan_is_the_same_elsewhere() -> None:
    search = ({**PLAN.search[0], "seconds": 9.0},)
    elsewhere = replace(PLAN, supernet="/other", command="plan /other", date="2027-01-01", search=search)
    assert elsewhere.portable() == PLAN.portable() == PLAN.portable().portable()
    assert Plan.from_json(PLAN.portable().to_json()) == PLAN.portable()
    assert PLAN.portable().subnet == PLAN.subnet


def test_only_the_runtimes_own_products_narrow_its_promises() -> None:
    """A profile of two runtimes: full of one, quick of the other; what is timed again is the one's that was planned."""
    entries = tuple(KernelEntry("full", 4, 32, rows, 512, 512, 1, 1.0, 1.0, 1.0, 9) for rows in range(1, 201))
    entries += tuple(KernelEntry("quick", 4, 32, rows, 1024, 1024, 1, 1.0, 1.0, 1.0, 9) for rows in range(1, 20))
    device = DeviceProfile(
        name="test", kind="cpu", vendor="test", model="test", memory_bytes=2**34, measured=True, source="test",
        date="2026-11-29", threads=1, kernels=KernelTable(entries),
    )  # fmt: skip
    assert [bands(device, name) for name in ("full", "quick", "none")] == [BANDS, QUICK, DATASHEET]
    again = {name: device_summary(device, name)["kernels"] for name in ("full", "quick", "none")}
    assert {name: [entry.runtime for entry in found] for name, found in again.items()} == {
        "full": ["full"], "quick": ["quick"], "none": [],
    }  # fmt: skip


def test_an_item_rests_on_a_basis_that_there_is(tmp_path: Path) -> None:
    for table, items in (("memory", "items"), ("latency", "decode")):
        data = PLAN.to_json()
        data = {**data, table: {**data[table], items: [{**data[table][items][0], "basis": "hearsay"}]}}
        (tmp_path / "plan.json").write_text(json.dumps(data))
        with pytest.raises(ValueError, match="a basis is one of exact, .* got 'hearsay'"):
            Plan.load(tmp_path / "plan.json")
