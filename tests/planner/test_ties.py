"""Plans where a runtime ties units and where none does: what they choose, what that costs, and one subnet for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from planner import pipeline
from planner.costs import Costs
from planner.fleet.fleetfile import Fleet, Wanted
from planner.fleet.plan import plan_fleet
from planner.frame import Framed
from planner.landscape import TiedLandscape
from planner.overview import bits_by_layer
from planner.plan import Plan
from planner.propose import Proposed, searched
from planner.replan import replanned
from planner.request import Asked, Budget
from planner.runtimes import RUNTIMES
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.shapes import SMOLLM2
from planner.search.measured import MeasuredSearch
from records.errors import InputError
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec, UnitSpec
from supernet.ties import Groups, siblings, tied, together
from tests.planner.test_pipeline import DEVICE, WORKLOAD, Files, additive


class Free(OnnxRuntime):
    """The same arithmetic with a product for each linear."""

    name = "free"

    def ties(self, spec: ModelSpec) -> Groups:
        return ()


LAYERS = 6
BUDGET = Budget(141_000_000)  # between 2 and 8 bits, tables of 4
plan = partial(pipeline.plan, trials=20)


def each_linear(spec: ModelSpec) -> ModelSpec:
    units = []
    for unit in spec.units:
        tails = [linear.name.rpartition(".")[2] for linear in unit.linears]
        roles = tails if len(tails) > 1 else [unit.role]
        units += [UnitSpec(lin.name, r, unit.layer, (lin,)) for lin, r in zip(unit.linears, roles, strict=True)]
    return replace(spec, units=tuple(units))


@pytest.fixture
def files(tmp_path: Any) -> Files:
    """A supernet in which values and the up projection lose more than their siblings."""
    spec, random = each_linear(replace(SMOLLM2, layers=LAYERS).spec()), np.random.default_rng(0)
    options = {u.name: tuple(Choice(b, 64) for b in ((4, 8) if u.is_table else (2, 4, 8))) for u in spec.units}
    loss = {}
    for unit in spec.units:
        scale = 0.05 * random.lognormal(0, 1) * (20 if unit.role in ("v_proj", "up_proj") else 1)
        loss[unit.name] = {str(c): scale * float(np.exp(-1.4 * (c.bits - 2))) for c in options[unit.name]}
    SensitivityTable("full", loss, supernet="f1").save(tmp_path / SENSITIVITY_FILE)
    return Files(tmp_path, spec, SearchSpace.of(options))


def apart(files: Files, made: Plan) -> int:
    """Groups of siblings that differ in the plan."""
    return sum(len({made.subnet[unit] for unit in group}) > 1 for group in siblings(files.spec))


def test_a_plan_is_free_where_nothing_is_tied_and_agrees_where_something_is(files: Files) -> None:
    table = SensitivityTable.load(files.path / SENSITIVITY_FILE)
    free, bound = (plan(files, runtime, DEVICE, WORKLOAD, BUDGET) for runtime in (Free(), OnnxRuntime()))
    assert apart(files, free) > LAYERS and apart(files, bound) == 0
    assert free.chosen.predicted_kl < bound.chosen.predicted_kl
    for made in (free, bound):
        assert made.subnet in files.space and all(one.subnet in files.space for one in made.compared)
        assert made.chosen.predicted_kl == pytest.approx(table.predict(made.subnet))
        assert made.chosen.mean_bits == round(made.subnet.mean_bits(files.spec), 4)
        assert Plan.from_json(made.to_json()) == made


def test_tied_units_cost_what_their_one_product_costs(files: Files) -> None:
    made = plan(files, OnnxRuntime(), DEVICE, WORKLOAD, BUDGET)
    spec = tied(files.spec, siblings(files.spec))
    assert spec.units == replace(SMOLLM2, layers=LAYERS).spec().units
    costs = Costs.of(OnnxRuntime(), files.spec, WORKLOAD, DEVICE, files.model_dir)
    whole = together(made.subnet, spec, "it")
    assert costs.memory(made.subnet) == costs.memory(whole) == made.memory and costs.latency(whole) == made.latency
    assert costs.disk_bytes(made.subnet) == costs.disk_bytes(whole) == made.chosen.disk_bytes
    names = {item.unit for item in made.latency.decode}
    assert "model.layers.0.self_attn.qkv" in names and "model.layers.0.self_attn.q_proj" not in names


def test_a_subnet_is_planned_for_another_runtime_unless_that_ties_what_differs(files: Files) -> None:
    free, bound = (plan(files, runtime, DEVICE, WORKLOAD, BUDGET) for runtime in (Free(), OnnxRuntime()))
    there = replanned(files, bound, Free(), DEVICE)
    assert there.subnet == bound.subnet and there.chosen.predicted_kl == bound.chosen.predicted_kl
    assert replanned(files, there, OnnxRuntime(), DEVICE).chosen == bound.chosen
    with pytest.raises(InputError, match=r"^onnxruntime computes .* together and takes one choice for them, got int"):
        replanned(files, free, OnnxRuntime(), DEVICE)


def test_a_search_that_measures_moves_tied_units_together(files: Files) -> None:
    table, asked = SensitivityTable.load(files.path / SENSITIVITY_FILE), []

    def lost(unit: str, choice: Choice) -> float:
        """What is measured: as predicted, but values lose nothing."""
        return 0.0 if "v_proj" in unit else table.by_choice[unit][choice]

    class Measured:
        samples = 1

        def losses(self, subnets: Sequence[Subnet]) -> list[float]:
            asked.extend(subnets)
            return [sum(lost(unit, choice) for unit, choice in subnet) for subnet in subnets]

        def slopes(self, subnet: Subnet, sample: int) -> dict[str, dict[Choice, float]]:
            """With what is predicted of both choices they are what a change adds."""
            asked.append(subnet)
            found: dict[str, dict[Choice, float]] = {}
            for unit, choices in files.space:
                now, predicted = subnet[unit], table.by_choice[unit]
                added = {c: lost(unit, c) - lost(unit, now) - predicted[c] - predicted[now] for c in choices}
                found[unit] = added | {now: 0.0}
            return found

    def deepen(framed: Framed, proposed: Proposed) -> Proposed:
        search = MeasuredSearch(landscape=TiedLandscape(Measured(), framed), clock=lambda: 0.0)
        return searched(framed.problem, proposed, search)

    before = plan(files, OnnxRuntime(), DEVICE, WORKLOAD, BUDGET)
    made = pipeline.plan_any(files, (OnnxRuntime(),), DEVICE, WORKLOAD, BUDGET, trials=20, deepen=deepen)
    assert asked and all(subnet in files.space for subnet in asked)
    assert all(apart(files, replace(made, compared=(one,))) == 0 for one in made.compared)
    losses = [Measured().losses([one.subnet for one in both.compared]) for both in (made, before)]
    assert min(losses[0]) < min(losses[1])


def test_bits_are_shown_for_siblings_together_where_they_agree(files: Files) -> None:
    free, bound = (plan(files, runtime, DEVICE, WORKLOAD, BUDGET) for runtime in (Free(), OnnxRuntime()))
    assert list(bits_by_layer(bound.subnet, files.spec)) == ["embedding", "qkv", "o", "gate_up", "down"]
    shown = bits_by_layer(free.subnet, files.spec)
    assert [*shown][1:4] == ["q_proj", "k_proj", "v_proj"]
    assert shown["v_proj"] == "".join(
        str(free.subnet[f"model.layers.{i}.self_attn.v_proj"].bits) for i in range(LAYERS)
    )


def test_a_fleet_of_both_measures_a_subnet_that_both_take_once(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, "free", Free)
    runtimes = {"free": Free(), "onnxruntime": OnnxRuntime()}
    wanted = (
        Wanted(f"{name} {memory}", "box", DEVICE, Budget(memory), name, Asked(WORKLOAD.context))
        for name in runtimes
        for memory in (10**9, BUDGET.memory_bytes)
    )
    asked: list[Any] = []

    def measure(subnets: Any) -> Any:
        asked.extend(subnets)
        return additive(files)(subnets)

    found = plan_fleet(files, Fleet(None, 0.0, tuple(wanted)), runtimes.__getitem__, measure, trials=5)
    plans = {member.wanted.name: member.plan for member in found.members}
    assert len(asked) == len(set(asked)) and all(subnet in files.space for subnet in asked)
    large = {plans[f"{name} {10**9}"].subnet for name in runtimes}  # type: ignore[union-attr]
    assert len(large) == 1  # 8 bits everywhere
    small = {name: plans[f"{name} {BUDGET.memory_bytes}"] for name in runtimes}
    assert apart(files, small["free"]) > 0 == apart(files, small["onnxruntime"])  # type: ignore[arg-type]
    assert len(found.packages) == 4
