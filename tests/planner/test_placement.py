"""Layers on a GPU and the others on its host: what is where, what it takes, and how many are decided for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner import pipeline
from planner.costs import Costs
from planner.frame import frame, placed
from planner.margins import said
from planner.place import ALIKE_KL, best_placement
from planner.plan import Margin, Plan
from planner.profiling import profile_device
from planner.request import Budget, Workload
from planner.runtimes.base import DECODE, DEVICE, ESTIMATE, HOST, PREFILL
from planner.runtimes.llamacpp import amounts, gpu_memory, latency, memory
from planner.runtimes.llamacpp.holding import LlamaHolding
from planner.runtimes.llamacpp.placement import Placed
from planner.runtimes.llamacpp.runtime import LlamaCpp
from planner.runtimes.llamacpp.serving import CACHES
from planner.runtimes.shapes import SMOLLM2, Shape
from planner.scenario import Scenario
from planner.search import program
from planner.search.base import Problem
from planner.search.program import bound, solve
from planner.summary import title
from profiles.catalog import load
from profiles.device import DeviceProfile
from profiles.shares import decode_estimate
from records.errors import BudgetError, InputError
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec
from tests.planner.test_pipeline import Files
from tests.planner.test_search_exact import problem
from tests.profiles.test_detect import fake

GPU, PC = load("rtx-4060-8gb"), load("desktop-ryzen-5600-16gb")
HOSTED = replace(GPU, host=PC)
SPEC = SMOLLM2.spec()
SYM4, SYM8 = Choice(4, 32, "sym"), Choice(8, 32, "sym")
LOAD = Workload(1024, 1, 256)
SMALL = Shape("small", 8, 576, 1536, 9, 3, 64, 49152).spec()
LONG, COUNTED = Workload(4096), 9
CACHES_LOSE = {"q8_0": 0.001, "q4_0": 1.0}


def uniform(spec: ModelSpec, choice: Choice = SYM4, table: Choice = SYM8) -> Subnet:
    return Subnet.of({unit.name: table if unit.is_table else choice for unit in spec.units})


def costs(layers: int | None, spec: ModelSpec = SPEC, device: DeviceProfile = HOSTED) -> Costs:
    return Costs(LlamaCpp(), spec, replace(LOAD, gpu_layers=layers), device, rest_bytes=0)


def test_the_output_goes_first_and_then_the_last_layers() -> None:
    untied = Shape("untied", 3, 256, 704, 4, 2, 64, 8192, tied=False).spec()
    for spec, tables in ((SPEC, ["model.embed_tokens"]), (untied, ["lm_head"])):
        for number in (1, 2, spec.num_layers + 1):
            found = Placed.of(spec, replace(LOAD, gpu_layers=number), HOSTED)
            on_gpu = [unit for unit in spec.units if found.on_gpu(unit)]
            layers = {unit.layer for unit in on_gpu if unit.layer is not None}
            assert layers == set(range(spec.num_layers + 1 - number, spec.num_layers))
            assert [unit.name for unit in on_gpu if unit.is_table] == tables
            left = [unit for unit in spec.units if found.on_host(unit)]
            assert left[0].name == "model.embed_tokens"
            assert {unit.name for unit in left[1:]}.isdisjoint(unit.name for unit in on_gpu)
            assert len(left[1:]) + len(on_gpu) == len(spec.units) - (not spec.tied)


@pytest.mark.parametrize("layers", [1, 12, 31])
def test_two_memories_have_the_whole_model(layers: int) -> None:
    """Every matrix and every token's keys and values are in one of them; a tied embedding is in both."""
    chosen = uniform(SPEC)
    found = costs(layers).memory(chosen)
    assert found.basis == ESTIMATE
    assert found.total_bytes + found.host_bytes == sum(item.bytes for item in found.items)
    weights = sum(item.bytes for item in found.items if item.unit)
    table = SPEC.unit("model.embed_tokens")
    assert weights == sum(amounts.weight_bytes(u, chosen[u.name]) for u in SPEC.units) + amounts.weight_bytes(
        table, chosen[table.name]
    )
    cache = {
        pool: sum(i.bytes for i in found.items if (i.name, i.pool) == ("KV cache", pool)) for pool in (DEVICE, HOST)
    }
    whole = memory.kv_bytes(SPEC, LOAD.context, 1, CACHES[0])
    assert cache == {DEVICE: whole * (layers - 1) // 30, HOST: whole * (31 - layers) // 30}


@pytest.mark.parametrize(
    ("shape", "context", "mib"),
    [
        (Shape("Llama 2 7B", 32, 4096, 11008, 32, 32, 128, 32000, tied=False), 512, 70.5),
        (Shape("Llama 3 8B", 32, 4096, 14336, 32, 8, 128, 128256, tied=False), 8192, 258.5),
    ],
)
def test_buffers_are_those_that_logs_report(shape: Shape, context: int, mib: float) -> None:
    spec = shape.spec()
    assert gpu_memory.gpu_buffers(Placed(spec, 32), {}, Workload(context)) == mib * 2**20


def test_a_whole_model_on_a_gpu_is_estimated_as_published_speeds_are() -> None:
    chosen = uniform(SPEC)
    items = costs(None, device=GPU).latency(chosen).decode
    weights = sum(amounts.weight_bytes(unit, chosen[unit.name]) for unit in SPEC.units)
    cache = memory.kv_bytes(SPEC, 256 + 32, 1, CACHES[0])
    whole = decode_estimate(GPU, "cuda", {"block": weights, "float": cache}, SPEC.num_layers)
    assert sum(item.ms for item in items) == pytest.approx(whole.ms, rel=1e-6)


def test_each_layer_that_leaves_the_gpu_costs_what_the_host_takes_longer() -> None:
    chosen = uniform(SPEC)
    tpot = [costs(number).latency(chosen).tpot_ms for number in range(1, 32)]
    steps = np.diff(tpot)[:-1]
    assert np.allclose(steps, steps[0]) and steps[0] < 0
    cpu = sum(item.ms for item in latency.items(SPEC, chosen, LOAD, PC, DECODE))
    head = latency.unit_ms(SPEC, SPEC.units[0], SYM8, LOAD, DECODE, PC).ms
    assert cpu - head < tpot[0] < cpu  # all layers on the host, the head faster


def test_a_prompt_copies_the_host_s_weights_and_a_short_one_does_not() -> None:
    chosen, untouched = uniform(SPEC), costs(31)
    moved = sum(amounts.weight_bytes(unit, SYM4) for unit in SPEC.units if unit.layer is not None)
    units = [u.name for u in SPEC.units if u.layer is not None]

    def of_layers(of: Costs, prompt: int) -> float:
        longer = replace(of, workload=replace(of.workload, prompt_tokens=prompt))
        return sum(item.ms for item in longer.latency(chosen).prefill if item.unit in units)

    assert of_layers(costs(1), 600) - of_layers(untouched, 600) == pytest.approx(2e3 * moved / 12e9)  # two chunks
    host = sum(
        latency.product_ms(PC, latency.type_of(SYM4), 31, k, n)[0]
        for u in SPEC.units if u.layer is not None for k, n in amounts.products(SPEC, u)
    )  # fmt: skip
    assert of_layers(costs(1), 31) == pytest.approx(host)


def test_a_gpu_that_shares_its_memory_has_one_pool_and_no_host() -> None:
    board = load("jetson-orin-nano-8gb")
    found = costs(None, device=board).memory(uniform(SPEC))
    assert board.shares_memory and found.host_bytes == 0
    assert LlamaCpp().placements(SPEC, board) == (31,)
    with pytest.raises(InputError, match="shares its memory with its own processor"):
        replace(board, host=PC)


def test_a_host_is_kept_in_the_profile_of_its_gpu(tmp_path: Path) -> None:
    HOSTED.save(tmp_path / "device.json")
    assert DeviceProfile.load(tmp_path / "device.json") == HOSTED
    assert "host" not in GPU.to_json() and "shares_memory" not in GPU.to_json()
    for device, host, why in ((PC, PC, "is a cpu"), (GPU, GPU, "rtx-4060-8gb is cuda")):
        with pytest.raises(InputError, match=why):
            replace(device, host=host)


def test_a_gpu_s_profile_has_no_times_of_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The build that is timed here computes on processors."""
    fake(monkeypatch)
    found, _ = profile_device("cuda:0", (LlamaCpp(),), quick=True)
    assert found.kind == "cuda" and found.host is not None and found.host.kind == "cpu"
    assert not found.kernels and not found.calibrations and found.threads is None


# --- what is decided ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_placement_is_that_of_solving_all(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is solved whose bound is beyond the best."""
    random = np.random.default_rng(seed)
    base = problem(6, seed)
    problems = [_other(base, random) for _ in range(12)]
    losses = [math.inf if (found := _solved(one)) is None else found for one in problems]
    bounds = [bound(one) for one in problems]
    for loss, least in zip(losses, bounds, strict=True):
        assert (least is None) <= (loss == math.inf) and (least is None or least <= loss + 1e-9)
    solved: list[Problem] = []

    def counting(space: Any, loss: Any, resources: Any, decisions: Any = ()) -> Any:
        solved.append(next(one for one in problems if one.resources is resources))
        return solve(space, loss, resources, decisions)

    monkeypatch.setattr("planner.place.solve", counting)
    able = [place for place, loss in enumerate(losses) if loss <= min(losses) + ALIKE_KL]
    if min(losses) < math.inf:
        assert best_placement(problems) == able[-1]
        assert all((bounds[problems.index(one)] or 0.0) <= min(losses) + ALIKE_KL for one in solved)
        most = sorted(loss for loss in losses if loss < math.inf)[-1]
        assert best_placement(problems, most) == max(place for place, loss in enumerate(losses) if loss <= most)


def _other(base: Problem, random: np.random.Generator) -> Problem:
    """The same with other amounts of memory, as another number of layers has."""
    first, *others = base.resources
    factors = {unit: random.choice([0.5, 1.0, 1.5]) for unit, _ in base.space}
    table = {unit: {c: round(factors[unit] * a) for c, a in row.items()} for unit, row in first.table.items()}
    return replace(base, resources=(replace(first, table=table), *others))


def _solved(one: Problem) -> float | None:
    found = solve(one.space, one.loss, one.resources, one.decisions)
    return None if found is None else found.loss(one)


class Described(LlamaHolding):
    """Of a model that is nowhere written down."""

    def rest_bytes(self, workload: Workload, model_dir: Path) -> int:
        return 10**6


class Llama(LlamaCpp):
    def holding(self, spec: ModelSpec) -> Described:
        return Described(spec)


@dataclass(frozen=True)
class Symmetric:
    folder: Path

    @property
    def files(self) -> Files:
        spec, random = SMALL, np.random.default_rng(0)
        options = {u.name: (SYM4, SYM8) if u.is_table else (Choice(3, 32, "sym"), SYM4, Choice(5, 32, "sym"), SYM8)
                   for u in spec.units}  # fmt: skip
        loss = {}
        for unit in spec.units:
            scale = 0.05 * random.lognormal(0, 1)
            loss[unit.name] = {str(c): scale * float(np.exp(-1.4 * (c.bits - 2))) for c in options[unit.name]}
        SensitivityTable("full", loss, supernet="f1").save(self.folder / SENSITIVITY_FILE)
        return Files(self.folder, spec, SearchSpace.of(options))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setattr(program, "TIME_LIMIT_S", 100.0)
    return Symmetric(tmp_path).files


def planned(
    files: Files, budget: Budget, device: DeviceProfile = HOSTED, layers: int | None = None, **more: Any
) -> Plan:
    workload = replace(LONG, gpu_layers=layers, kv_cache=more.pop("kv_cache", None))
    given = {"trials": 0, "cache_loss": lambda runtime, cache: CACHES_LOSE[cache.name], **more}
    return pipeline.plan_any(files, (Llama(),), device, workload, budget, **given)


def losses_of(files: Files, budget: Budget) -> dict[int, float]:
    """The least loss by the number of layers on the GPU, where there is any."""
    table = SensitivityTable.load(files.path / SENSITIVITY_FILE)
    framed = frame(Scenario(files, table, Llama(), HOSTED, LONG, budget))
    found = {number: _solved(placed(framed, number).problem) for number in range(1, COUNTED + 1)}
    return {number: loss for number, loss in found.items() if loss is not None}


def tight() -> Budget:
    """Where five of nine layers fit on the GPU with 4 bits everywhere."""
    half = Costs(LlamaCpp(), SMALL, replace(LONG, gpu_layers=5), HOSTED, 0).memory(uniform(SMALL, table=SYM4))
    return Budget(round(1.052 * half.total_bytes), host_memory_bytes=round(1.052 * half.host_bytes))


def test_the_number_of_layers_is_decided_with_the_weights(files: Files) -> None:
    """It is the one with which least is lost, of those that lose as much the largest."""
    made = planned(files, tight())
    assert made.placement is not None and made.workload.gpu_layers == made.placement["gpu_layers"]
    assert 1 < made.placement["gpu_layers"] < made.placement["layers"] == COUNTED
    chosen = made.chosen
    assert chosen.memory_bytes * 1.05 <= tight().memory_bytes
    assert (chosen.host_bytes or 0) * 1.05 <= (tight().host_memory_bytes or 0)
    losses = losses_of(files, tight())
    least = min(losses.values())
    assert made.placement["gpu_layers"] == max(n for n, loss in losses.items() if loss <= least + ALIKE_KL)
    assert Plan.from_json(made.to_json()) == made
    assert title(made).endswith(f"{made.placement['gpu_layers']} of 9 layers on the GPU, in desktop-ryzen-5600-16gb")
    number = made.placement["gpu_layers"]
    for margin in (one for one in made.margins if one.decision == "gpu-layers"):
        then = losses.get(int(margin.option))
        assert margin.instead == f"{number}" and margin.weights_kl == (
            None if then is None else pytest.approx(then - losses[number], abs=1e-6)
        )
        assert (margin.tpot_ms < 0) == (margin.memory_bytes > 0) == (int(margin.option) > number)


def test_where_all_fits_all_is_on_the_gpu(files: Files) -> None:
    roomy, alone = planned(files, Budget(8 * 10**9)), planned(files, Budget(8 * 10**9), GPU)
    assert roomy.placement == alone.placement == {"gpu_layers": COUNTED, "layers": COUNTED}
    assert roomy.compared == alone.compared
    assert (roomy.limits.host_memory_bytes, alone.limits.host_memory_bytes) == (PC.memory_bytes, None)


def test_the_type_of_cache_is_decided_with_it(files: Files) -> None:
    made, fixed = planned(files, tight(), kv_cache="auto"), planned(files, tight(), kv_cache="q8_0")
    assert made.workload == fixed.workload and made.compared == fixed.compared
    assert made.chosen.predicted_kl + 0.001 < planned(files, tight()).chosen.predicted_kl


def test_within_a_loss_as_many_layers_as_keep_it_are_on_the_gpu(files: Files) -> None:
    least = planned(files, tight()).chosen.predicted_kl
    made = planned(files, replace(tight(), max_kl=1.5 * least))
    assert made.placement is not None and made.chosen.predicted_kl <= 1.5 * least
    able = [number for number, loss in losses_of(files, tight()).items() if loss <= 1.5 * least]
    assert made.placement["gpu_layers"] == able[-1] < COUNTED


@pytest.mark.parametrize(
    ("budget", "device", "layers", "why"),
    [
        (Budget(700_000_000), GPU, None, "layers that do not fit stay there"),
        (Budget(700_000_000), HOSTED, None, "the smallest plan needs 7.* MB of memory; use --mem"),
        (Budget(10**9, host_memory_bytes=10**8), HOSTED, None, "--host-mem 3"),
        (Budget(10**9), HOSTED, 32, "1 to 9, got --gpu-layers 32"),
        (Budget(10**9), GPU, 16, "all 9; name the others' --host, got --gpu-layers 16"),
        (Budget(10**9), PC, 16, "leaves no layers elsewhere on desktop-ryzen-5600-16gb, got --gpu-layers 16"),
    ],
)
def test_what_cannot_be_is_refused(
    files: Files, budget: Budget, device: DeviceProfile, layers: int | None, why: str
) -> None:
    with pytest.raises((BudgetError, InputError), match=why) as error:
        planned(files, budget, device, layers)
    assert "\n" not in str(error.value)


def test_margins_of_layers_are_lines() -> None:
    lines = [
        said(Margin("gpu-layers", "16", option, taken, 0.0, kl, ms))
        for option, taken, kl, ms in (("17", 210_000_000, 0.0012, -3.1), ("15", -210_000_000, None, 3.1))
    ]
    assert lines == [
        "one more layer on the GPU takes 210 MB there, 3.1 ms less a token: KL 0.0012 more (predicted)",
        "one layer fewer on the GPU frees 210 MB there, 3.1 ms more a token: nothing would keep the limits",
    ]


def test_prefill_and_decode_are_the_phases() -> None:
    with pytest.raises(ValueError, match=f"{PREFILL} or {DECODE}"):
        LlamaCpp().pricing(SPEC, LOAD, GPU).latency(uniform(SPEC), "prompt")
