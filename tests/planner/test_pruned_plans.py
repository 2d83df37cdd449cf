"""Plans in which feed-forward blocks lose channels: searched, priced and, for ONNX Runtime, written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.reports import print_bits
from planner import pipeline
from planner.costs import Costs
from planner.frame import loadable
from planner.overview import bits_by_layer
from planner.plan import Plan
from planner.request import Budget, Workload
from planner.runtimes.onnxruntime import storage
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.solving import DEEP
from planner.search import SEARCHES
from planner.search.base import Problem, Resource, Search
from planner.search.exact import ExactSearch
from planner.search.program import shortfalls
from profiles.device import DeviceProfile
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec

RUNTIME = OnnxRuntime()
DEVICE = DeviceProfile(
    "box", "cpu", "Acme", "Acme CPU", 16 * 10**9, True, "bitfleet profile device", "2026-11-22", threads=2,
    bandwidth_bytes_per_s=2e10, bandwidth_basis="measured", int8_ops_per_s=1e12,
)  # fmt: skip
WORKLOAD = Workload(512)
HALF, GONE = DEEP.feed_forward // 2, 0


def pruned_space(spec: ModelSpec, bits: tuple[int, ...] = (2, 3, 4, 8)) -> SearchSpace:
    options = {u.name: tuple(Choice(b, 64) for b in ((4, 8) if u.is_table else bits)) for u in spec.units}
    for pair in spec.feed_forwards:
        for unit in pair:
            options[unit.name] += (Choice(bits[0], 64, kept=GONE), *(Choice(b, 64, kept=HALF) for b in bits))
    return SearchSpace.of(options, tuple((maker.name, reader.name) for maker, reader in spec.feed_forwards))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """One to three coupled pairs and up to two units by themselves, with choices of their own and any cost at all."""
    options: dict[str, tuple[Choice, ...]] = {}
    coupled = []
    for number in range(draw(st.integers(1, 3))):
        pair = (f"make{number}", f"read{number}")
        kept = draw(st.sets(st.sampled_from([0, 32, 64])))
        for unit in pair:
            bits = draw(st.sampled_from([(2, 4), (4,)]))
            parts = [Choice(b, 32, kept=k) for k in kept for b in (bits if k else bits[:1])]
            options[unit] = (*(Choice(b, 32) for b in bits), *parts)
        coupled.append(pair)
    for number in range(draw(st.integers(0, 2))):
        options[f"unit{number}"] = (Choice(2, 32), Choice(4, 32))
    space = SearchSpace.of(options, tuple(coupled))
    number = st.integers(1, 1000)
    loss = {u: {c: draw(number) / 100 for c in choices} for u, choices in space}
    memory = {u: {c: float(draw(number)) for c in choices} for u, choices in space}
    latency = {u: {c: draw(number) / 10 for c in choices} for u, choices in space}
    resources = []
    for name, unit, table in (("memory", "bytes", memory), ("tpot", "ms", latency)):
        low, high = (sum(pick(t.values()) for t in table.values()) for pick in (min, max))
        limit = low + draw(st.floats(0, 1)) * (high - low)
        resources.append(Resource(name, unit, int(limit) if unit == "bytes" else limit, 0.0, table))
    return Problem(space, loss, tuple(resources), groups={u: u[:4] for u, _ in space})


def everything(space: SearchSpace) -> list[Subnet]:
    units = [unit for unit, _ in space]
    subnets = (Subnet(tuple(zip(units, cs, strict=True))) for cs in product(*(choices for _, choices in space)))
    return [subnet for subnet in subnets if subnet in space]


def search(name: str) -> Search:
    return SEARCHES[name](trials=20) if name == "optuna" else SEARCHES[name]()  # type: ignore[call-arg]


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_exact_equals_brute_force_where_units_must_agree(problem: Problem) -> None:
    values = [problem.additive(subnet) for subnet in everything(problem.space) if problem.feasible(subnet)]
    found = ExactSearch().search(problem).candidates
    assert bool(found) == bool(values)
    if values:
        assert found[0].subnet in problem.space
        assert found[0].loss == pytest.approx(min(values), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_what_is_too_little_is_said_exactly(problem: Problem) -> None:
    subnets = everything(problem.space)
    if any(problem.feasible(subnet) for subnet in subnets):
        return
    short = shortfalls(problem)
    assert short
    for one in short:
        others = [r for r in problem.resources if r is not one.resource and not one.alone]
        fit = [s for s in subnets if all(r.amount(s) <= r.limit for r in others)]
        assert one.smallest == pytest.approx(min(one.resource.amount(s) for s in fit))


@pytest.mark.parametrize("name", SEARCHES)
@settings(max_examples=15, deadline=None)
@given(problem=problems())
def test_every_search_keeps_coupled_units_together(name: str, problem: Problem) -> None:
    starts = ExactSearch().search(problem).candidates
    found = search(name).search(problem, starts).candidates
    assert all(candidate.subnet in problem.space and problem.feasible(candidate.subnet) for candidate in found)
    if starts:
        assert found[0].loss <= starts[0].loss + 1e-12


def test_a_pruned_block_costs_less_and_one_that_is_gone_nothing() -> None:
    spec = replace(DEEP, layers=2).spec()
    maker, reader = spec.feed_forwards[0]
    assert storage.matrices(maker, HALF) == ((DEEP.hidden, HALF), (DEEP.hidden, HALF))
    assert storage.matrices(reader, HALF) == ((HALF, DEEP.hidden),)
    costs = Costs.of(RUNTIME, spec, WORKLOAD, DEVICE, Path())
    whole = Subnet.of({u.name: Choice(4, 64) for u in spec.units})
    amounts = []
    for kept in (None, HALF, GONE):
        subnet = whole
        for unit in (maker, reader):
            subnet = subnet.replace(unit.name, Choice(4, 64, kept=kept))
        latency = costs.latency(subnet)
        amounts.append((costs.memory(subnet).total_bytes, costs.disk_bytes(subnet), latency.tpot_ms, latency.ttft_ms))
        block = [storage.unit_bytes(unit, subnet[unit.name]) for unit in (maker, reader)]
        assert sum(block) == (0 if kept == 0 else sum(storage.unit_bytes(u, whole[u.name]) for u in (maker, reader)) * (
            0.5 if kept else 1))  # fmt: skip
    assert all(a > b > c for a, b, c in zip(*amounts, strict=True))


def test_runtimes_say_what_they_do_not_prune() -> None:
    spec = replace(DEEP, layers=1).spec()
    (_, reader), *_ = spec.feed_forwards
    assert RUNTIME.holding(spec).unit_refusal(reader, Choice(4, 64, kept=HALF)) is None
    assert RUNTIME.holding(spec).unit_refusal(reader, Choice(3, 64, kept=GONE)) is None
    assert "got 3" in str(RUNTIME.holding(spec).unit_refusal(reader, Choice(3, 64, kept=HALF)))
    nemotron = replace(spec, architecture="NemotronForCausalLM")
    refusal = RUNTIME.holding(nemotron).unit_refusal(reader, Choice(4, 64, kept=HALF))
    assert refusal == "feed-forward blocks of NemotronForCausalLM cannot be pruned"


@dataclass(frozen=True)
class Files:
    path: Path
    spec: ModelSpec
    space: SearchSpace
    fingerprint: str = "f1"
    deploys: str = "scales"
    activations: Mapping[str, float] = field(default_factory=dict)

    @property
    def model_dir(self) -> Path:
        return self.path / "model"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A model in which the channels of one block in two hardly matter."""
    spec, random = DEEP.spec(), np.random.default_rng(0)
    space, loss = pruned_space(spec), {}
    for unit in spec.units:
        scale = 0.05 * random.lognormal(0, 1)
        removal = (0.001 if (unit.layer or 0) % 2 else 10) * (unit.role == "down")
        loss[unit.name] = {
            str(c): scale * float(np.exp(-1.4 * (c.bits - 2))) * (c.kept != 0)
            + removal * {None: 0.0, HALF: 0.2, GONE: 1.0}[c.kept]
            for c in space[unit.name]
        }
    SensitivityTable("full", loss, supernet="f1").save(tmp_path / SENSITIVITY_FILE)
    return Files(tmp_path, spec, space)


def test_a_plan_prunes_what_matters_least(files: Files) -> None:
    roomy = pipeline.plan(files, RUNTIME, DEVICE, WORKLOAD, Budget(10**9), trials=50)
    assert all(choice == Choice(8, 64) for _, choice in roomy.subnet)
    budget = Budget(round(roomy.chosen.memory_bytes - 5e6))
    made = pipeline.plan(files, RUNTIME, DEVICE, WORKLOAD, budget, trials=50)
    assert made.chosen.memory_bytes <= budget.memory_bytes
    assert made.subnet in files.space
    pruned = {files.spec.unit(unit).layer for unit, choice in made.subnet if choice.kept is not None}
    assert pruned and all(layer is not None and layer % 2 for layer in pruned)
    assert Plan.from_json(made.to_json()) == made
    assert made.chosen.mean_bits == round(made.subnet.mean_bits(files.spec), 4)


def test_what_a_runtime_does_not_prune_is_dropped_with_the_reason(files: Files) -> None:
    nemotron = replace(files.spec, architecture="NemotronForCausalLM")
    space, dropped = loadable(files.space, nemotron, RUNTIME)
    assert space == space.whole
    assert dropped[f"int4g64k{HALF} of gate_up"] == "feed-forward blocks of NemotronForCausalLM cannot be pruned"


def test_a_plan_shows_how_much_is_kept(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    subnet = files.space.uniform(files.spec, 4)
    for (maker, reader), kept in zip(files.spec.feed_forwards, (GONE, HALF), strict=False):
        for unit in (maker, reader):
            subnet = subnet.replace(unit.name, files.space.pruned(unit.name, Choice(4, 64), kept))
    print_bits(bits_by_layer(subnet, files.spec))
    lines = capsys.readouterr().out.splitlines()
    assert "down         -444444444444444" in lines
    assert "tenths kept  05.............." in lines
    whole = files.space.uniform(files.spec, 4)
    print_bits(bits_by_layer(whole, files.spec))
    assert "tenths" not in capsys.readouterr().out


def test_the_exact_program_of_a_real_model_is_solved_in_time() -> None:
    """Thirty layers, four bit-widths, and three numbers of channels beside all."""
    random = np.random.default_rng(0)
    options, coupled = {}, []
    for layer in range(30):
        for role in ("qkv", "o", "gate_up", "down"):
            whole = tuple(Choice(b, 64) for b in (2, 3, 4, 8))
            kept = [Choice(c.bits, 64, kept=k) for k in (768, 1152) for c in whole] + [Choice(2, 64, kept=0)]
            options[f"{layer}.{role}"] = (*whole, *(kept if role in ("gate_up", "down") else ()))
        coupled.append((f"{layer}.gate_up", f"{layer}.down"))
    space = SearchSpace.of(options, tuple(coupled))
    memory, ms, loss = {}, {}, {}
    for unit, choices in space:
        size = 576 * 1536 * (2 if "gate" in unit else 1)
        shares = {c: (1 if c.kept is None else c.kept / 1536) for c in choices}
        memory[unit] = {c: float(round(size * (c.bits + 0.5) / 8 * s)) for c, s in shares.items()}
        ms[unit] = {c: 1e-8 * size * s * (1 + 0.05 * c.bits) * random.lognormal(0, 0.01) for c, s in shares.items()}
        scale, gone = 0.1 * random.lognormal(0, 1), 0.3 * random.lognormal(0, 1) * ("down" in unit)
        loss[unit] = {c: scale * np.exp(-1.4 * (c.bits - 2)) * s + gone * (1 - s) ** 2 for c, s in shares.items()}
    low, high = (sum(pick(t.values()) for t in memory.values()) for pick in (min, max))
    fastest = sum(min(t.values()) for t in ms.values())
    limits = (
        Resource("memory", "bytes", int(low + 0.35 * (high - low)), 0.0, memory),
        Resource("tpot", "ms", 1.8 * fastest, 0.0, ms),
    )
    found = ExactSearch().search(Problem(space, loss, limits))
    assert found.candidates[0].subnet in space
    assert found.trace["gap"] < 0.001
