"""Planning from end to end for ONNX Runtime: SmolLM2's shapes, sensitivities made up, costs estimated."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner import pipeline
from planner.frame import Framed, frame
from planner.limits import MEMORY, TPOT, TTFT
from planner.plan import Plan, Tuned
from planner.propose import TOP, TRIALS, Proposed, propose
from planner.quality import MeasuredQuality, Quality, measured_on, over_texts
from planner.request import Budget, Workload, parse_bytes
from planner.runtimes import RUNTIMES
from planner.scenario import Scenario
from planner.search.base import Problem
from planner.search.program import solve
from profiles.catalog import load
from profiles.device import DeviceProfile
from profiles.kernels import KernelEntry, KernelTable
from records.errors import BudgetError, InputError
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import LinearSpec, ModelSpec, UnitSpec


def smollm2(layers: int = 30) -> ModelSpec:
    units = [UnitSpec("model.embed_tokens", "embedding", None, (LinearSpec("model.embed_tokens", 49152, 576),))]
    for i in range(layers):
        parts = {
            "self_attn.qkv": ("qkv", 960, 576),
            "self_attn.o_proj": ("o", 576, 576),
            "mlp.gate_up": ("gate_up", 3072, 576),
            "mlp.down_proj": ("down", 576, 1536),
        }
        for name, (role, rows, columns) in parts.items():
            full = f"model.layers.{i}.{name}"
            units.append(UnitSpec(full, role, i, (LinearSpec(full, rows, columns),)))
    return ModelSpec("smol", "LlamaForCausalLM", layers, 576, 9, 3, 64, 49152, 8192, True, 35136, tuple(units))


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


DEVICE = DeviceProfile(
    "box", "cpu", "Acme", "Acme CPU", 16 * 10**9, True, "bitfleet profile device", "2026-11-22", threads=2,
    bandwidth_bytes_per_s=2e10, bandwidth_basis="measured", int8_ops_per_s=1e12,
)  # fmt: skip
WORKLOAD = Workload(512)
BUDGET = Budget(228_000_000)  # between the uniform subnets of 2 and of 4 bits


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return sensitive_files(tmp_path)


def sensitive_files(folder: Path, layers: int = 30) -> Files:
    """A supernet of SmolLM2's shapes at 2, 3, 4 and 8 bits, early layers and down projections the most sensitive."""
    spec, random = smollm2(layers), np.random.default_rng(0)
    choices = tuple(Choice(bits, 64) for bits in (2, 3, 4, 8))
    options = {u.name: choices[2:] if u.is_table else choices for u in spec.units}
    loss = {}
    for unit in spec.units:
        scale = 0.05 * random.lognormal(0, 1) * (3 if unit.role == "down" else 1) * (4 if unit.layer in (0, 29) else 1)
        loss[unit.name] = {str(c): scale * float(np.exp(-1.4 * (c.bits - 2))) for c in options[unit.name]}
    SensitivityTable("full", loss, supernet="f1").save(folder / SENSITIVITY_FILE)
    return Files(folder, spec, SearchSpace.of(options))


def additive(files: Files) -> Any:
    table = SensitivityTable.load(files.path / SENSITIVITY_FILE)
    return lambda subnets: [{"kl": table.predict(s), "perplexity": 50.0, "top1": 0.7, "tokens": 4096} for s in subnets]


def planned(files: Files, budget: Budget, **options: Any) -> Plan:
    options = {"measure": additive(files), "trials": 100, **options}
    return pipeline.plan(files, RUNTIMES["onnxruntime"](), DEVICE, WORKLOAD, budget, **options)


def drawn(files: Files, budget: Budget) -> Plan:
    """With the front of loss over memory."""
    runtimes = (RUNTIMES["onnxruntime"](),)
    return pipeline.plan_any(files, runtimes, DEVICE, WORKLOAD, budget, additive(files), trials=20, drawn=True)


def framed_for(files: Files, budget: Budget, workload: Workload = WORKLOAD) -> Framed:
    table = SensitivityTable.load(files.path / SENSITIVITY_FILE)
    return frame(Scenario(files, table, RUNTIMES["onnxruntime"](), DEVICE, workload, budget))


def test_the_plan_keeps_every_budget_and_beats_the_uniform_subnet(files: Files) -> None:
    budget = Budget(226_000_000, tpot_ms=6.2, ttft_ms=185.0, disk_bytes=75_000_000)
    made = planned(files, budget)
    for compared in made.compared:
        assert compared.memory_bytes * (1 + made.bands[MEMORY]) <= budget.memory_bytes
        assert compared.tpot_ms * (1 + made.bands[TPOT]) <= 6.2 and compared.ttft_ms * (1 + made.bands[TTFT]) <= 185.0
        assert compared.disk_bytes <= 75_000_000
    assert made.uniform is not None
    assert made.chosen.kind == "planned" and made.chosen.measured["kl"] < made.uniform.measured["kl"]
    assert any("against" in note and "uniform" in note for note in made.notes)
    assert made.memory.total_bytes == made.chosen.memory_bytes
    assert sum(item.bytes for item in made.memory.items) == made.chosen.memory_bytes


def test_what_the_runtime_cannot_load_is_dropped_with_the_reason(files: Files) -> None:
    made = planned(files, BUDGET)
    assert {choice.bits for compared in made.compared for _, choice in compared.subnet} <= {2, 4, 8}
    assert made.dropped["int3g64 of qkv"] == "ONNX Runtime loads 2, 4 and 8 bits, got 3; train with one of them"


def test_a_supernet_that_the_runtime_cannot_load_at_all_is_refused(files: Files) -> None:
    three = SearchSpace.of({u: tuple(c for c in choices if c.bits != 2) for u, choices in files.space})
    only = replace(files, space=SearchSpace.of({**three.by_unit, "model.layers.3.mlp.down_proj": (Choice(3, 64),)}))
    with pytest.raises(ValueError, match=r"loads none of the choices of model\.layers\.3\.mlp\.down_proj.*--bits"):
        planned(only, BUDGET)
    with pytest.raises(ValueError, match="onnxruntime cannot load smol: .* got MambaForCausalLM"):
        planned(replace(files, spec=replace(files.spec, architecture="MambaForCausalLM")), BUDGET)


def test_with_room_for_everything_everything_is_at_its_largest(files: Files) -> None:
    made = planned(files, Budget(10**9))
    assert all(choice.bits == 8 for _, choice in made.subnet)
    assert made.chosen.measured
    assert any("uniform 8 bits" in note for note in made.notes)


def test_a_uniform_subnet_that_measures_best_is_chosen_and_said(files: Files) -> None:
    def measure(subnets: Sequence[Subnet]) -> list[Quality]:
        linears = [{c.bits for u, c in subnet if u != "model.embed_tokens"} for subnet in subnets]
        return [{"kl": 0.1 if len(bits) == 1 else 0.2} for bits in linears]

    made = planned(files, BUDGET, measure=measure)
    assert made.chosen.kind == "uniform"
    assert any("measured best and was chosen" in note for note in made.notes)


def test_only_what_was_never_measured_is_measured(files: Files) -> None:
    def measure(subnets: Sequence[Subnet], texts: Sequence[str]) -> list[dict[str, Quality]]:
        found = additive(files)(subnets)
        return [
            {text: one | {"kl": one["kl"] * factor, "windows": 4} for text, factor in zip(texts, (1, 3), strict=True)}
            for one in found
        ]

    digests = {"held-out": "t1", "Python manual": "t2"}
    quality = MeasuredQuality(files.path / "evaluations.json", files.fingerprint, digests, measure)
    first = planned(files, BUDGET, measure=quality)
    count = quality.measured
    assert count == len(first.compared) + 1 > 3  # and what the runtime's own tools make
    again = planned(files, BUDGET, measure=quality)
    assert quality.measured == count
    texts = first.chosen.measured["texts"]
    assert first.chosen.measured["kl"] == sum(texts[name]["kl"] for name in digests) / 2
    assert any(note.startswith("measured with 95 % intervals on held-out, 4 windows") for note in first.notes)
    assert again.compared == first.compared


def test_scales_of_its_own_change_the_plan_and_nothing_that_stands_beside_it(files: Files) -> None:
    def on_text(kl: float) -> Quality:
        return over_texts({"held-out": {"kl": kl, "windows": 4, "tokens": 1024}})

    def measure(subnets: Sequence[Subnet]) -> list[Quality]:
        return [on_text(one["kl"]) for one in additive(files)(subnets)]

    def tuned(tune: Any) -> Plan:
        runtimes = (RUNTIMES["onnxruntime"](),)
        return pipeline.plan_any(files, runtimes, DEVICE, WORKLOAD, BUDGET, measure, trials=20, tune=tune)

    def half(made: Plan) -> pipeline.Own:
        about = Tuned("0" * 64, 12, 0, "text.txt", 100, 120, made.chosen.measured)
        return pipeline.Own(about, "f2", on_text(made.chosen.kl / 2))

    makers = (None, lambda made: "won nothing", half)
    plain, lost, won = (tuned(tune).portable() for tune in makers)
    assert replace(lost, notes=lost.notes[:-1]) == plain and lost.notes[-1] == "won nothing"
    assert (won.fingerprint, won.chosen.kl) == ("f2", plain.chosen.kl / 2)
    assert won.tuned is not None and won.tuned.before == plain.chosen.measured
    assert (won.compared[1:], won.rejected, won.others) == (plain.compared[1:], plain.rejected, plain.others)
    changed = [(old, new) for old, new in zip(plain.notes, won.notes, strict=True) if old != new]
    assert [new for _, new in changed] == list(measured_on(won.chosen.measured))
    assert Plan.from_json(won.to_json()) == won and "tuned" not in plain.to_json()
    for odd in ({"sha256": "../../etc"}, {"steps": -1}):
        data = won.to_json()
        with pytest.raises(InputError):
            Plan.from_json(data | {"tuned": data["tuned"] | odd})


def test_without_measuring_the_prediction_decides_and_the_plan_says_so(files: Files) -> None:
    made = planned(files, BUDGET, measure=None)
    assert made.chosen.source == "exact" and made.chosen.measured == {}
    assert any("nothing was measured" in note for note in made.notes)


def test_the_finalists_differ_enough_to_be_told_apart(files: Files) -> None:
    made = planned(files, BUDGET, trials=400)
    subnets = [c.subnet for c in made.compared if c.kind == "planned"]
    assert len(subnets) == TOP == 2
    assert min(sum(a[u] != c for u, c in b) for a in subnets for b in subnets if a is not b) >= 6


def test_a_finalist_keeps_to_the_bit_widths_around_the_mean(files: Files) -> None:
    """Losses that add would never choose it; measured, it may be best."""

    def measure(subnets: Sequence[Subnet]) -> list[Quality]:
        return [{"kl": spread(subnet)} for subnet in subnets]

    def spread(subnet: Subnet) -> float:
        bits = [choice.bits for unit, choice in subnet if unit != "model.embed_tokens"]
        return sum(abs(b - sum(bits) / len(bits)) for b in bits)

    made = planned(files, Budget(226_000_000), measure=measure, top=3)
    (narrow,) = [c for c in made.compared if c.source == "exact, near the mean"]
    mean = narrow.subnet.mean_bits(files.spec)
    assert {c.bits for u, c in narrow.subnet if u != "model.embed_tokens"} == ({2, 4} if mean < 4 else {4, 8})
    assert narrow.memory_bytes * (1 + made.bands[MEMORY]) <= 226_000_000
    (exact,) = [c for c in made.compared if c.source == "exact"]
    assert {c.bits for u, c in exact.subnet if u != "model.embed_tokens"} == {2, 4, 8}
    assert narrow.predicted_kl > exact.predicted_kl and narrow.measured["kl"] < exact.measured["kl"]


def test_a_finalist_is_split_at_a_depth(files: Files) -> None:
    """Losses that add would never choose it; measured, it may be best."""

    def changes(subnets: Sequence[Subnet]) -> list[Quality]:
        bits = [[subnet[u.name].bits for u in files.spec.units if not u.is_table] for subnet in subnets]
        return [{"kl": float(len(set(one)) == 1) * 99 + sum(a != b for a, b in pairwise(one))} for one in bits]

    made = planned(files, Budget(226_000_000), measure=changes)
    assert made.chosen.source == "2 and 4 bits, split at a depth"
    assert made.chosen.memory_bytes * (1 + made.bands[MEMORY]) <= 226_000_000
    bits = [made.chosen.subnet[u.name].bits for u in files.spec.units if not u.is_table]
    assert bits == sorted(bits) and set(bits) == {2, 4}


def test_with_two_bit_widths_no_finalist_is_near_the_mean(files: Files) -> None:
    two = files.space.restrict(lambda unit, choice: choice.bits in (4, 8))
    made = planned(replace(files, space=two), BUDGET)
    assert not any("near the mean" in compared.source for compared in made.compared)


def test_the_same_seed_plans_the_same(files: Files) -> None:
    first, second = (planned(files, BUDGET, seed=3) for _ in range(2))
    assert first.compared == second.compared


@pytest.mark.parametrize(
    ("budget", "name", "flag"),
    [
        (Budget(90_000_000), "memory", "--mem"),
        (Budget(10**9, tpot_ms=1.0), "time per token", "--latency"),
        (Budget(10**9, ttft_ms=1.0), "time to first token", "--ttft"),
        (Budget(10**9, disk_bytes=10_000_000), "disk", "--disk"),
    ],
)
def test_a_budget_that_cannot_be_met_names_the_smallest_that_can(
    files: Files, budget: Budget, name: str, flag: str
) -> None:
    message = rf"^{name} of .* cannot be met, the smallest plan needs .*; use {flag} "
    with pytest.raises(BudgetError, match=message) as raised:
        planned(files, budget)
    text = str(raised.value).rsplit(" ", 1)[1]
    field = {"--mem": "memory_bytes", "--latency": "tpot_ms", "--ttft": "ttft_ms", "--disk": "disk_bytes"}[flag]
    enough = float(text.removesuffix("ms")) if text.endswith("ms") else parse_bytes(text)
    planned(files, replace(budget, **{field: enough}))
    with pytest.raises(BudgetError):
        planned(files, replace(budget, **{field: type(enough)(enough * 0.998)}))


def test_a_time_that_cannot_be_met_is_said_in_tokens_a_second_too(files: Files) -> None:
    said = r"^time per token of 1 ms \(1000 tokens/s\) cannot be met"
    with pytest.raises(BudgetError, match=rf"{said}, .* [\d.]+ ms of time per token \([\d.]+ tokens/s\)"):
        planned(files, Budget(10**9, tpot_ms=1.0))


def test_budgets_that_all_fail_are_all_named(files: Files) -> None:
    with pytest.raises(BudgetError, match=r"^memory of 90 MB and disk of 10 MB cannot be met.*; use --mem .* --disk "):
        planned(files, Budget(90_000_000, disk_bytes=10_000_000))


def test_more_memory_than_there_is_is_planned_for_what_there_is(files: Files) -> None:
    small = replace(DEVICE, available_bytes=215_000_000)
    runtime, budget = RUNTIMES["onnxruntime"](), Budget(8 * 10**9)
    made = pipeline.plan(files, runtime, small, WORKLOAD, budget, additive(files), trials=50)
    assert made.chosen.memory_bytes <= 215_000_000
    assert made.limits.memory_bytes == 215_000_000 and made.budget.memory_bytes == 8 * 10**9
    assert "the memory budget of 8 GB exceeds the 215 MB that box has available: planned for 215 MB" in made.notes


def test_a_device_that_is_too_small_is_not_blamed_on_the_budget(files: Files) -> None:
    small = replace(DEVICE, available_bytes=90_000_000)
    with pytest.raises(BudgetError, match="memory of 90 MB cannot be met.*box has no more: free some"):
        pipeline.plan(files, RUNTIMES["onnxruntime"](), small, WORKLOAD, Budget(8 * 10**9), trials=50)


def test_a_context_beyond_the_model_and_missing_sensitivities_are_one_line(files: Files) -> None:
    with pytest.raises(ValueError, match="at most the 8192 tokens of smol, got 10000"):
        pipeline.plan(files, RUNTIMES["onnxruntime"](), DEVICE, Workload(10_000), Budget(10**9))
    (files.path / SENSITIVITY_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="no sensitivity table"):
        planned(files, Budget(10**9))


def test_a_device_of_the_catalogue_is_said_to_be_an_estimate(files: Files) -> None:
    laptop = load("laptop-i5-1240p-8gb")
    made = pipeline.plan(files, RUNTIMES["onnxruntime"](), laptop, WORKLOAD, Budget(10**9), trials=10)
    assert made.latency.basis == "estimate" and made.device["measured"] is False
    assert any("laptop-i5-1240p-8gb was not measured" in note and laptop.source in note for note in made.notes)


def test_a_device_that_the_runtime_does_not_run_on_is_refused(files: Files) -> None:
    with pytest.raises(ValueError, match="runs on cpu, not on cuda, got l4-24gb; plan for another --device"):
        pipeline.plan(files, RUNTIMES["onnxruntime"](), load("l4-24gb"), WORKLOAD, Budget(10**9))


def test_one_more_device_takes_less_than_ten_seconds_with_the_default_trials(files: Files) -> None:
    started = time.process_time()
    made = planned(files, Budget(226_000_000, tpot_ms=6.2), trials=TRIALS)
    assert time.process_time() - started < 10
    (exact,) = made.search
    assert exact["seconds"] < 2 and exact["gap"] == 0


def test_optuna_goes_on_where_that_can_change_the_finalists(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def proposed(budget: Budget, proven: bool) -> tuple[Proposed, list[str]]:
        monkeypatch.setattr("planner.propose._proven", lambda problem, exact: proven)  # whatever the time allows
        framed = framed_for(files, budget)
        made = propose(framed.problem, framed.costs.spec, trials=20)
        return made, [trace["solver"] for trace in made.traces]

    exact, both = ["HiGHS"], ["HiGHS", "Optuna NSGAIISampler"]
    full = Budget(226_000_000, tpot_ms=6.2)  # one is near the mean of the best
    made, solvers = proposed(full, proven=True)
    again, more = proposed(full, proven=False)
    assert (solvers, more) == (exact, both)
    assert len(made.finalists) == 3 and made.finalists == again.finalists
    assert proposed(BUDGET, proven=True)[1] == both  # a place is left


@pytest.mark.parametrize(("gap", "trials"), [(0.0, 0), (2e-16, 0), (1e-4, 1), (None, 1)])
def test_what_the_order_of_a_sum_leaves_is_proven(
    files: Files, gap: float | None, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.search.exact.solve", lambda *asked: replace(solve(*asked), gap=gap))
    framed = framed_for(files, Budget(226_000_000, tpot_ms=6.2))
    assert len(propose(framed.problem, framed.costs.spec, trials=20).traces) == 1 + trials


def test_planning_on_cached_numbers_never_imports_torch(files: Files) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/planner')\n"
        "from pathlib import Path\n"
        "from test_pipeline import *\n"
        "choices = tuple(Choice(bits, 64) for bits in (2, 4, 8))\n"
        "spec = smollm2()\n"
        "space = SearchSpace.of({u.name: choices[1:] if u.is_table else choices for u in spec.units})\n"
        "planned(Files(Path(sys.argv[1]), spec, space), BUDGET, trials=20)\n"
        "print('torch' in sys.modules, 'onnxruntime' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(files.path)], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("False False", 0), done.stderr


def test_more_sequences_than_the_runtime_serves_are_refused(files: Files) -> None:
    runtime = RUNTIMES["llamacpp"]()
    with pytest.raises(ValueError, match=r"^llamacpp serves 256 sequences at once at most, got a batch of 257; use"):
        pipeline.plan(files, runtime, DEVICE, replace(WORKLOAD, batch=257), BUDGET)


def test_a_device_that_was_timed_with_another_build_is_refused(files: Files) -> None:
    runtime = RUNTIMES["llamacpp"]()
    (library,) = runtime.versions()
    timed = KernelEntry("llamacpp", 4, 32, 1, 512, 512, 2, 1.0, 1.0, 1.0, 9, "Q4_0")
    stale = replace(DEVICE, kernels=KernelTable((timed,), "2026-11-22", {library: "1.0"}))
    with pytest.raises(ValueError, match=rf"run in {library} .*, box was timed with 1.0; time it again with `bitfleet"):
        pipeline.plan(files, runtime, stale, WORKLOAD, BUDGET)
    assert pipeline.plan(files, RUNTIMES["onnxruntime"](), stale, WORKLOAD, BUDGET, trials=0).runtime == "onnxruntime"


def test_adapters_that_would_run_slowly_are_refused(files: Files) -> None:
    with pytest.raises(ValueError, match=r"deploy as a side path, .* slowly; train with --adapter scales"):
        pipeline.plan(replace(files, deploys="side"), RUNTIMES["onnxruntime"](), DEVICE, WORKLOAD, BUDGET)


def test_a_model_that_loses_too_much_by_rounded_activations_is_refused(files: Files) -> None:
    planned(replace(files, activations={"int8": 0.009, "int4": 1.0}), BUDGET, trials=10)
    with pytest.raises(ValueError, match=r"activations as int8, which by itself costs smol 0\.012 nats.* --awq"):
        planned(replace(files, activations={"int8": 0.012}), BUDGET)


def test_a_plan_says_how_much_context_its_memory_would_hold(files: Files) -> None:
    made = planned(files, BUDGET)

    def at(context: int) -> Problem:
        return framed_for(files, BUDGET, Workload(context)).problem

    assert made.context_room is not None
    room, memory = made.context_room, at(512).resources[0]
    assert 512 <= room["planned"] < room["smallest"] < files.spec.max_context
    assert [at(room["planned"] + more).feasible(made.subnet) for more in (0, 1)] == [True, False]
    least = memory.smallest(at(512).space)
    assert memory.amount(least) == pytest.approx(memory.least(at(512).space))
    assert [at(room["smallest"] + more).feasible(least) for more in (0, 1)] == [True, False]
    roomy = planned(files, Budget(10**9)).context_room
    assert roomy == {"planned": files.spec.max_context, "smallest": files.spec.max_context}
