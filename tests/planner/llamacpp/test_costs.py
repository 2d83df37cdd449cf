"""What llama.cpp is promised to cost, against processes that serve random models and numbers that are known."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from planner.request import Workload
from planner.runtimes.base import DECODE, ESTIMATE, INTERPOLATED, MEASURED, PREFILL
from planner.runtimes.caches import CacheType
from planner.runtimes.calibrated import factor_of
from planner.runtimes.child import Measurement
from planner.runtimes.llamacpp import amounts, costs, fresh, kernels, latency, memory, random_gguf
from planner.runtimes.llamacpp.attention import compared
from planner.runtimes.llamacpp.calibrate import WIDE, LlamaCalibrator, exact_bytes
from planner.runtimes.llamacpp.formats import TYPES
from planner.runtimes.llamacpp.serving import CACHES, LIBRARY, WEIGHTS
from planner.runtimes.passes import DECODED_TOKENS
from planner.runtimes.shapes import SMOLLM2, Shape
from planner.runtimes.solving import DEEP, LONG, MIDDLE, SHALLOW, SHORT, Times, prompted
from profiles import catalog
from profiles.anchor import anchored, figures
from profiles.device import Calibration, DeviceProfile
from profiles.kernels import KernelEntry, KernelTable
from profiles.shares import decode_estimate
from supernet.space import Choice, Subnet

needs_library = pytest.mark.skipif(
    find_spec(LIBRARY) is None, reason=f"needs {LIBRARY}: pip install 'bitfleet[llamacpp]'"
)
DEVICE = DeviceProfile(
    name="test", kind="cpu", vendor="test", model="test", memory_bytes=2**34, measured=False, source="test",
    date="2026-01-01", architecture="x86_64", threads=1, bandwidth_bytes_per_s=2e10, bandwidth_basis="datasheet",
    int8_ops_per_s=1e12,
)  # fmt: skip
CALIBRATOR = LlamaCalibrator()
SYM4, SYM8 = Choice(4, 32, "sym"), Choice(8, 32, "sym")
K2, K3, K4, K6 = (Choice.parse(name) for name in ("k2g16", "k3g16", "k4g32", "k6g16"))
SMALL = Shape("small", 3, 256, 704, 4, 2, 64, 8192)
SMALL_BLOCKS = replace(SMALL, name="small blocks", feed_forward=768)


def uniform(shape: Shape, choice: Choice, table: Choice) -> Subnet:
    return Subnet.of({unit.name: table if unit.is_table else choice for unit in shape.spec().units})


@needs_library
@pytest.mark.parametrize(
    ("choice", "table", "context"),
    [(SYM4, SYM4, 256), (SYM8, SYM4, 4096), (SYM4, SYM8, 2048), (K3, K4, 256), (K2, K6, 512)],
)
def test_the_peak_is_promised(tmp_path: Path, choice: Choice, table: Choice, context: int) -> None:
    """With the usual costs; never above, and within the reserve of it. What a process takes differs by a megabyte."""
    shape = SMALL_BLOCKS if choice.grid == "k" else SMALL
    chosen = uniform(shape, choice, table)
    folder = random_gguf.write(shape, chosen, context, 1, tmp_path / "package")
    found = fresh.measure(folder, context - 4 if context < 4000 else 400, context, new_tokens=4, repeats=1)
    promised = sum(item.bytes for item in memory.items(shape.spec(), chosen, Workload(context), DEVICE))
    assert found.peak_bytes <= promised < found.peak_bytes + 5_000_000


@needs_library
def test_what_a_calibrated_device_takes_for_a_token_is_no_estimate(tmp_path: Path) -> None:
    """What is beside the products, picking a token included: a sum rests on the weakest of its parts."""
    package = random_gguf.write(SMALL, uniform(SMALL, SYM4, SYM8), 256, 1, tmp_path / "package")
    known = CALIBRATOR.solver.passes.known
    (picking,) = CALIBRATOR.besides(package)
    assert 0 < picking.value < 1e3
    others = tuple(known.calibration(name, 1.0) for name in known.units if name != picking.name)
    device = replace(DEVICE, kernels=table_of({"Q4_0": 4.0}), calibrations=(picking, *others))
    for phase in (DECODE, PREFILL):
        around = latency.around(SMALL.spec(), Workload(512, 1, 128), device, phase)
        assert {item.basis for item in around} == {MEASURED}


def test_weights_and_cache_are_exact() -> None:
    spec = SMOLLM2.spec()
    items = {i.name: i.bytes for i in memory.items(spec, uniform(SMOLLM2, SYM4, SYM8), Workload(1000), DEVICE)}
    assert items["KV cache"] == 2 * 30 * 1024 * 192 * 2
    assert items["model.embed_tokens"] == 49152 * 576 // 32 * 34
    assert items["model.layers.0.self_attn.qkv"] == (576 + 192 + 192) * 576 // 32 * 18
    assert items["norms and biases"] == 61 * 576 * 4
    kinds = {cache.name: memory.kv_bytes(spec, 1000, 2, cache) for cache in CACHES}
    assert kinds["f16"] == 2 * items["KV cache"]
    assert kinds["q8_0"] * 32 == kinds["f16"] * 17 and kinds["q4_0"] * 32 == kinds["f16"] * 9


@pytest.mark.parametrize(("architecture", "table", "times"), [
    ("x86_64", SYM4, 2), ("x86_64", SYM8, 1), ("aarch64", SYM8, 2), (None, SYM4, 2), ("x86_64", Choice(4, 32), 1),
])  # fmt: skip
def test_a_tied_table_that_is_repacked_is_there_twice(architecture: str | None, table: Choice, times: int) -> None:
    spec = SMALL.spec()
    (unit,) = (unit for unit in spec.units if unit.is_table)
    assert memory.unit_bytes(spec, unit, table, architecture) == times * amounts.weight_bytes(unit, table)
    untied = replace(SMALL, tied=False).spec()
    assert all(memory.unit_bytes(untied, u, table, architecture) == amounts.weight_bytes(u, table)
               for u in untied.units if u.is_table)  # fmt: skip


def table_of(speeds: dict[str, float]) -> KernelTable:
    """Products that take a millisecond for so many million weights and rows."""
    return KernelTable(tuple(
        KernelEntry("llamacpp", latency.CODE_BITS[name], TYPES[name].block, rows, k, n, 1, *(3 * (ms,)), 9, name)
        for name, speed in speeds.items()
        for k, n in ((256, 256), (256, 704), (704, 256), (256, 8192), (1024, 1024), (512, 512))
        for rows in (1, 128)
        for ms in (k * n * rows / (speed * 1e6),)
    ))  # fmt: skip


def test_each_type_has_its_own_time() -> None:
    """int4 and sym4 are both four bits in groups of 32; their kernels are others."""
    device = replace(DEVICE, kernels=table_of({"Q4_0": 4.0, "Q4_1": 2.0, "Q8_0": 8.0}))
    spec, workload = SMALL.spec(), Workload(512, 1, 128)
    times = {}
    for choice in (SYM4, Choice(4, 32), Choice(3, 32), Choice(2, 64, "sym")):
        chosen = uniform(SMALL, choice, SYM8)
        times[str(choice)] = {item.name: item for item in latency.items(spec, chosen, workload, device, DECODE)}
    down, table = "model.layers.1.mlp.down_proj", "model.embed_tokens"
    assert times["sym4g32"][down].ms == pytest.approx(704 * 256 / 4e6, rel=0.02)
    assert times["int4g32"][down].ms == pytest.approx(2 * times["sym4g32"][down].ms, rel=0.02)
    assert times["int3g32"][down] == times["sym4g32"][down]  # the same type
    assert times["sym4g32"][table].ms == pytest.approx(256 * 8192 / 8e6, rel=0.02)
    assert times["sym4g32"][down].basis == MEASURED
    slow = times["sym2g64"][down]
    assert slow.basis == ESTIMATE and slow.ms > 10 * 704 * 256 * 0.25 / 2e7


def test_a_device_that_was_never_measured_is_estimated_as_a_whole_file_is() -> None:
    """Units, cache and layers add up to profiles.shares' estimate of their bytes; figures of the device mend it."""
    spec, workload = SMOLLM2.spec(), Workload(1024, 1, 256)
    chosen = uniform(SMOLLM2, SYM4, SYM8)
    own = figures([{
        "backends": "CPU", "model_type": "llama 8B Q4_0", "model_size": 4.67e9, "model_n_params": 8.03e9,
        "n_gpu_layers": 0, "n_prompt": 0, "n_gen": 128, "avg_ts": 2.0,
    }], "bench.json")  # fmt: skip
    plain = catalog.load("raspberry-pi-5-8gb")
    totals = []
    for device in (plain, anchored(plain, own)):
        items = latency.items(spec, chosen, workload, device, DECODE)
        cache = memory.kv_bytes(spec, 256 + DECODED_TOKENS // 2, 1, CACHES[0])
        weights = sum(amounts.weight_bytes(unit, chosen[unit.name]) for unit in spec.units)
        whole = decode_estimate(device, "cpu", {"block": weights, "float": cache}, spec.num_layers)
        assert {item.basis for item in items} == {ESTIMATE}
        assert sum(item.ms for item in items) == pytest.approx(whole.ms, rel=1e-6)
        totals.append(whole.ms)
    assert totals[1] > 1.1 * totals[0]


def test_a_prompt_is_read_in_chunks_and_its_head_sees_the_last_row() -> None:
    device = replace(DEVICE, kernels=table_of({"Q4_0": 4.0, "Q8_0": 8.0}))
    spec = SMALL.spec()
    assert latency.chunks(Workload(512, 2, 300)) == 2 * [(128, 128), (128, 256), (44, 300)]
    items = {i.name: i for i in latency.items(spec, uniform(SMALL, SYM4, SYM8), Workload(512, 2, 300), device, PREFILL)}
    assert items["model.embed_tokens"].ms == pytest.approx(2 * 256 * 8192 / 8e6, rel=0.02)
    down = items["model.layers.1.mlp.down_proj"]
    assert down.ms == pytest.approx(600 * 704 * 256 / 4e6, rel=0.05) and down.basis == INTERPOLATED


def test_costs_of_memory_are_found_again() -> None:
    """What processes would take whose costs are known is solved for those costs."""
    known = {costs.BASE: 30e6, costs.LAYER_BYTES: 1e5, costs.TOKEN_BYTES: 400.0, costs.ACTIVATIONS: 0.7}
    found: dict[Shape, list[Measurement]] = {}
    for shape in (SHALLOW, DEEP, WIDE):
        spec = shape.spec()
        loaded = exact_bytes(spec, CALIBRATOR.subnet(shape), "x86_64") + known[costs.TOKEN_BYTES] * spec.vocab_size
        loaded += known[costs.BASE] + known[costs.LAYER_BYTES] * shape.layers
        grown = memory.activation_bytes(spec, prompted(LONG), known[costs.ACTIVATIONS])
        found[shape] = [Measurement(round(loaded), round(loaded + grown), 1.0, 1.0)]
    solved = {one.name: one.value for one in CALIBRATOR.solve_memory(found, DEVICE)}
    assert solved == {name: pytest.approx(value, rel=1e-3) for name, value in known.items()}


@pytest.mark.parametrize("threads", [1, 2, 6])
def test_costs_of_time_are_found_again(threads: int) -> None:
    known = {costs.STEP: 0.3, costs.LAYER: 0.02, costs.VALUE: 0.4, costs.SCORE_DECODE: 0.3, costs.SCORE_PREFILL: 0.1}
    calibrations = tuple(Calibration("llamacpp", name, value, costs.UNITS[name]) for name, value in known.items())
    device = replace(DEVICE, calibrations=calibrations, threads=threads)
    products, head = {1: 0.1, 128: 3.0, 104: 2.6}, 0.5

    def pass_ms(shape: Shape, prompt: int, phase: str) -> float:
        workload = prompted(prompt)
        around = sum(item.ms for item in latency.around(shape.spec(), workload, device, phase))
        passes = [1] if phase == DECODE else [rows for rows, _ in latency.chunks(workload)]
        return around + shape.layers * sum(products[rows] for rows in passes) + head

    times = Times(
        pass_ms(SHALLOW, SHORT, DECODE), pass_ms(DEEP, SHORT, DECODE),
        pass_ms(DEEP, LONG, DECODE), pass_ms(WIDE, SHORT, DECODE), pass_ms(WIDE, LONG, DECODE),
        {prompt: pass_ms(DEEP, prompt, PREFILL) for prompt in (MIDDLE, LONG)},
        products, head,
    )  # fmt: skip
    solved = CALIBRATOR.solver.times(times, WIDE, threads)
    for name in (costs.SCORE_DECODE, costs.SCORE_PREFILL):
        assert solved[name] == pytest.approx(known[name], rel=0.02)
    for name in (costs.STEP, costs.LAYER, costs.VALUE):  # a value and a layer of one token are not told apart exactly
        assert solved[name] == pytest.approx(known[name], rel=0.25)


@pytest.mark.parametrize("threads", [1, 2, 6])
@pytest.mark.parametrize("cache", CACHES[1:], ids=lambda cache: cache.name)
def test_attention_takes_what_its_cache_does(cache: CacheType, threads: int) -> None:
    """The factors of a type are found again from what serving takes more with it; without them nothing is measured."""
    factors = {DECODE: 1.7, PREFILL: 2.5}
    known = {costs.LAYER: 0.02, costs.SCORE_DECODE: 0.3, costs.SCORE_PREFILL: 0.1}
    known |= {factor_of(cache, phase): factor for phase, factor in factors.items()}
    plain, device = (
        replace(
            DEVICE, calibrations=tuple(Calibration("llamacpp", n, v, costs.UNITS[n]) for n, v in some), threads=threads
        )
        for some in (list(known.items())[:3], known.items())
    )
    workloads = [replace(prompted(LONG), kv_cache=kind) for kind in (None, cache.name)]
    spec, taken, plainly = DEEP.spec(), {}, {}
    for phase in (PREFILL, DECODE):
        items = [latency.around(spec, one, device, phase)[0] for one in workloads]
        work = [compared(one, DEEP.heads, threads) if phase == DECODE else 1.0 for one in workloads]
        assert items[1].ms == pytest.approx(factors[phase] * items[0].ms * work[1] / work[0])
        assert items[1].basis == MEASURED
        plainly[phase], taken[phase] = (item.ms for item in items)
        usual = latency.around(spec, replace(prompted(9), kv_cache=cache.name), plain, phase)[0]
        assert usual.basis == ESTIMATE
    short = latency.around(spec, prompted(SHORT), device, DECODE)[0].ms
    times = Times(0.0, short, plainly[DECODE], 0.0, 0.0, {LONG: plainly[PREFILL]}, {}, 0.0)
    rounded = Measurement(0, 0, taken[PREFILL], taken[DECODE])
    found = CALIBRATOR.solver.cache(cache, rounded, times, known[costs.SCORE_PREFILL], threads)
    assert found == {factor_of(cache, phase): pytest.approx(factor) for phase, factor in factors.items()}


@needs_library
def test_products_of_every_type_are_timed() -> None:
    cases = [(TYPES[name], 256, 64, (1, 4)) for name in latency.CODE_BITS]
    found = kernels.timed(cases, 1, 2**19)
    assert [(e.kernel, e.rows) for e in found] == [(name, rows) for name in latency.CODE_BITS for rows in (1, 4)]
    assert all(0 < e.p10_ms <= e.median_ms <= e.p90_ms for e in found)
    assert 0.1 < kernels.slower(found[:2], 2**16) < 100


@needs_library
def test_what_is_repacked_is_what_this_build_repacks() -> None:
    import platform

    from planner.runtimes.llamacpp import capi, products
    from planner.runtimes.llamacpp.installed import library

    loaded, machine = capi.Library(library()), platform.machine()
    for name in latency.CODE_BITS:
        for rows in (64, 68):
            made = products.Products(loaded, TYPES[name].number, 256, rows, 1, 1)
            said = memory.repacked(TYPES[name], machine, rows)
            assert made.repacked == said if machine == "x86_64" else said or not made.repacked, name
            made.close()


@needs_library
def test_a_file_is_no_larger_than_its_weights_in_memory(tmp_path: Path) -> None:
    chosen = uniform(SMALL, SYM4, SYM8)
    folder = random_gguf.write(SMALL, chosen, 256, 1, tmp_path / "package")
    spec = SMALL.spec()
    weights = sum(amounts.weight_bytes(unit, chosen[unit.name]) for unit in spec.units)
    size = (folder / WEIGHTS).stat().st_size
    assert weights < size < weights + 70 * spec.vocab_size
