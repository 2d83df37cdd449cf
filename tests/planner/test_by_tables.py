"""vLLM on a GPU whose kernels others measured: a pass is the sum of its kernels, and says what each rests on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from planner.latency import estimate_latency
from planner.request import Workload
from planner.runtimes.base import DECODE, ESTIMATE, INTERPOLATED, MODELLED, PREFILL, LatencyItem
from planner.runtimes.passes import cached_tokens
from planner.runtimes.shapes import Shape
from planner.runtimes.vllm.by_tables import PACKED_KERNEL, STEP_MS, Pass, passes
from planner.runtimes.vllm.holding import HUMMING_TIMES
from planner.runtimes.vllm.runtime import Vllm
from planner.runtimes.vllm.scheduling import pass_tokens
from profiles.catalog import load
from profiles.device import DeviceProfile
from profiles.gpu_tables import package
from profiles.gpu_tables.attention import BFLOAT16, FP8, Heads
from profiles.gpu_tables.tables import GpuTables, tables_in
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec
from tests.profiles.gpu_tables import made_up

pytest.importorskip("pyarrow")
TIED = Shape("tied", 4, 2048, 8192, 16, 2, 128, 65536)
UNTIED = replace(TIED, tied=False)
DOWN = "model.layers.0.mlp.down_proj"
LOAD = Workload(4096, 1, 1024)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.write(tmp_path_factory.mktemp("tables"))


@pytest.fixture
def tables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> GpuTables:
    monkeypatch.setattr(package, "root", lambda: folder)
    found = tables_in(folder, "h100_sxm")
    assert found is not None
    return found


@pytest.fixture
def device() -> DeviceProfile:
    return load("h100-sxm-80gb")


def uniform(spec: ModelSpec, text: str) -> Subnet:
    return Subnet.of({unit.name: Choice.parse(text) for unit in spec.units})


def items(
    device: DeviceProfile, shape: Shape, workload: Workload, phase: str, text: str = "sym4g128"
) -> dict[str, LatencyItem]:
    spec = Vllm().tied(shape.spec())
    found = Vllm().pricing(spec, workload, device).latency(uniform(spec, text), phase)
    return {item.name: item for item in found}


def test_a_token_is_the_sum_of_its_kernels(tables: GpuTables, device: DeviceProfile) -> None:
    found = items(device, UNTIED, LOAD, DECODE)
    spec, products = UNTIED.spec(), tables.products
    joined = {"self_attn.qkv": (2560, 2048), "self_attn.o_proj": (2048, 2048), "mlp.gate_up": (16384, 2048)}
    for tail, (n, k) in {**joined, "mlp.down_proj": (2048, 8192)}.items():
        size = n * k * (4 / 8 + 2 / 128)
        item = found[f"model.layers.3.{tail}"]
        assert item.ms == pytest.approx(products.packed(1, n, k, size, PACKED_KERNEL).ms, rel=1e-4)
        assert item.basis == MODELLED and item.unit == item.name
    heads = Heads(spec.num_heads, spec.num_kv_heads, spec.head_dim)
    one = tables.decode.one_token(1, heads, cached_tokens(LOAD), BFLOAT16)
    assert (found["attention"].ms, found["attention"].basis) == (pytest.approx(4 * one.ms), INTERPOLATED)
    assert found["model.embed_tokens"].ms < 2 * products.start_ms < found["lm_head"].ms
    beside = found["norms, activations, sampling and the host"]
    assert beside.basis == ESTIMATE and STEP_MS < beside.ms < 1.01 * STEP_MS
    spec = Vllm().tied(spec)
    whole = estimate_latency(Vllm().pricing(spec, LOAD, device), uniform(spec, "sym4g128"))
    assert whole.tpot_ms == pytest.approx(sum(item.ms for item in found.values()))
    assert whole.basis == ESTIMATE and 0.05 < whole.spread < 0.6


def test_an_embedding_that_is_the_head_too_is_a_product_of_floats(tables: GpuTables, device: DeviceProfile) -> None:
    table = items(device, TIED, LOAD, DECODE)["model.embed_tokens"]
    assert table.ms == pytest.approx(tables.products.floats(1, 65536, 2048).ms) and table.basis == INTERPOLATED
    last = items(device, TIED, LOAD, PREFILL)["model.embed_tokens"]
    assert last.ms == pytest.approx(table.ms)  # logits of the last token alone


def test_bits_that_vllm_runs_by_another_kernel_are_estimates_beside_its_four(
    tables: GpuTables, device: DeviceProfile
) -> None:
    four = items(device, TIED, LOAD, DECODE, "sym4g128")[DOWN]
    for bits, times in HUMMING_TIMES.items():
        item = items(device, TIED, LOAD, DECODE, f"sym{bits}g128" if bits < 8 else "int8g128")[DOWN]
        assert (item.ms, item.basis) == (pytest.approx(times * four.ms), ESTIMATE)
        assert item.spread == pytest.approx(math.sinh(math.log(2)))
    eight = items(device, TIED, LOAD, DECODE, "sym8g128")[DOWN]
    assert eight.basis == MODELLED and four.ms < eight.ms < 2 * four.ms


def test_a_prompt_goes_through_in_chunks(tables: GpuTables, device: DeviceProfile) -> None:
    assert passes(Workload(8192, 3, 1500), PREFILL, 2048) == [Pass(2048, 0), Pass(2048, 0), Pass(404, 3)]
    assert passes(Workload(8192, 3, 1500), DECODE, 2048) == [Pass(3, 3)]
    with pytest.raises(ValueError, match="phase"):
        passes(LOAD, "train", 2048)
    load = Workload(32768, 1, 16384)
    assert pass_tokens(load, device) == 8192
    long = items(device, TIED, load, PREFILL)
    size = 2048 * 8192 * (4 / 8 + 2 / 128)
    one = tables.products.packed(8192, 2048, 8192, size, PACKED_KERNEL).ms
    assert long[DOWN].ms == pytest.approx(2 * one, rel=1e-4)
    heads = Heads(16, 2, 128)
    whole = tables.prefill.prompt(1, heads, 16384, BFLOAT16, None).ms
    assert long["attention"].ms == pytest.approx(4 * whole)


@pytest.mark.parametrize("gpus", [2, 4])
def test_several_gpus_each_do_a_part_and_add_up(tables: GpuTables, device: DeviceProfile, gpus: int) -> None:
    load = replace(LOAD, gpus=gpus, batch=4)
    found, products = items(device, UNTIED, load, DECODE), tables.products
    keys = max(1, 2 // gpus)
    parts = {
        "self_attn.qkv": ((16 // gpus + 2 * keys) * 128, 2048), "self_attn.o_proj": (2048, 2048 // gpus),
        "mlp.gate_up": (16384 // gpus, 2048), "mlp.down_proj": (2048, 8192 // gpus),
    }  # fmt: skip
    for tail, (n, k) in parts.items():
        size = n * k * (4 / 8 + 2 / 128)
        wanted = products.packed(4, n, k, size, PACKED_KERNEL).ms
        assert found[f"model.layers.3.{tail}"].ms == pytest.approx(wanted, rel=1e-3), tail
    heads = Heads(16 // gpus, keys, 128)
    assert found["attention"].ms == pytest.approx(
        4 * tables.decode.one_token(4, heads, cached_tokens(load), BFLOAT16).ms
    )
    sums = found["sums over the GPUs"]
    assert tables.reduce is not None and sums.basis == INTERPOLATED
    assert sums.ms == pytest.approx((2 * 4 + 1) * tables.reduce.of(gpus, 4 * 2048 * 2).ms)


def test_sums_over_a_number_of_gpus_that_nobody_measured_are_a_guess(tables: GpuTables, device: DeviceProfile) -> None:
    load = replace(LOAD, gpus=16)
    assert items(device, UNTIED, load, DECODE)["sums over the GPUs"].basis == ESTIMATE
    assert "sums over 16 GPUs take is a guess" in str(Vllm().pricing(UNTIED.spec(), load, device).rests_on())
    assert "guess" not in str(Vllm().pricing(UNTIED.spec(), replace(load, gpus=8), device).rests_on())


def test_windows_and_caches_are_what_attention_reads(tables: GpuTables, device: DeviceProfile) -> None:
    spec = replace(Vllm().tied(TIED.spec()), windows=(256, None, 256, None))
    load_long = Workload(8192, 8, 4000, "fp8")
    subnet = uniform(spec, "sym4g128")
    found = {i.name: i for i in Vllm().pricing(spec, load_long, device).latency(subnet, DECODE)}["attention"]
    heads = Heads(16, 2, 128)
    each = [tables.decode.one_token(8, heads, tokens, FP8).ms for tokens in (256, cached_tokens(load_long))]
    assert found.ms == pytest.approx(2 * sum(each))


def test_a_plan_says_whose_measurements_it_rests_on(tables: GpuTables, device: DeviceProfile) -> None:
    said = Vllm().pricing(TIED.spec(), LOAD, device).rests_on()
    assert said is not None and "\n" not in said
    assert "sums and experts of vllm 0.24.0 on" in said and "NVIDIA H100 80GB HBM3 (aiconfigurator-core" in said


def test_without_the_tables_times_are_by_bandwidth_and_a_plan_says_what_to_install(device: DeviceProfile) -> None:
    pricing = Vllm().pricing(Vllm().tied(TIED.spec()), LOAD, device)
    assert "pip install 'bitfleet[gpu-tables]'" in str(pricing.rests_on())
    assert {item.basis for item in pricing.latency(uniform(pricing.spec, "sym4g128"), DECODE)} == {ESTIMATE}
    other = Vllm().pricing(pricing.spec, LOAD, load("rtx-4090-24gb")).rests_on()
    assert other is not None and "gpu-tables" not in other


def test_memory_is_the_same_by_tables(folder: Path, device: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Vllm().tied(TIED.spec())
    without = Vllm().pricing(spec, LOAD, device).memory(uniform(spec, "sym4g128"))
    monkeypatch.setattr(package, "root", lambda: folder)
    assert Vllm().pricing(spec, LOAD, device).memory(uniform(spec, "sym4g128")) == without
