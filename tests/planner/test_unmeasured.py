"""Devices where nothing was measured: every runtime gives an estimate with a band, or says why it gives none."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from planner.latency import estimate_latency
from planner.memory import estimate_memory
from planner.request import Workload
from planner.runtimes import RUNTIMES
from planner.runtimes.base import DECODE, ESTIMATE, Runtime
from planner.runtimes.mlx.runtime import Mlx
from planner.runtimes.solving import SHALLOW
from planner.runtimes.vllm.holding import GRIDS, HUMMING_TIMES, MARLIN, kernel
from planner.runtimes.vllm.runtime import Vllm
from profiles.catalog import load, names
from profiles.folder_shares import FITTED, FLOAT, PACKED, Reading, read_estimate
from profiles.shares import published_bandwidth
from records.errors import InputError
from supernet.space import Choice, Subnet

LOAD = Workload(128, 1, 32)
SPEC = SHALLOW.spec()
GPUS = [name for name in names() if Vllm().device_refusal(load(name)) is None]
KINDS = {"onnxruntime": "cpu", "llamacpp": "cpu", "vllm": "cuda", "mlx": "cpu"}


def uniform(text: str) -> Subnet:
    return Subnet.of({unit.name: Choice.parse(text) for unit in SPEC.units})


@pytest.mark.parametrize("device_name", names())
@pytest.mark.parametrize("runtime_name", RUNTIMES)
def test_every_device_of_the_catalogue_has_an_estimate_with_a_band_or_a_refusal(
    runtime_name: str, device_name: str
) -> None:
    runtime, device = RUNTIMES[runtime_name](), load(device_name)
    refusal = runtime.device_refusal(device)
    if refusal is not None:
        kinds = runtime.device_kinds
        other_maker = (runtime_name, device.vendor == "Apple") == ("mlx", False)
        assert device.kind not in kinds or other_maker or device.name == "v100-sxm-32gb", refusal
        return
    subnet = uniform("sym4g32")
    pricing = runtime.pricing(SPEC, LOAD, device)
    assert estimate_memory(pricing, subnet).total_bytes > 0
    try:
        found = estimate_latency(pricing, subnet)
    except InputError as error:
        assert "dot" in str(error) or "speed" in str(error)  # no estimate where a device's speed is not its bandwidth's
        return
    assert found.basis == ESTIMATE and 0 < found.tpot_ms < found.ttft_ms * LOAD.prompt_tokens
    assert 0.1 < found.spread <= 1.0


@pytest.mark.parametrize("name", GPUS)
def test_a_token_of_vllm_is_its_bytes_over_the_published_share(name: str) -> None:
    device, runtime = load(name), Vllm()
    assert runtime.device_refusal(device) is None
    times = {}
    for text in ("sym4g32", "int4g32", "sym8g32", "int8g32", "sym2g32", "sym3g32"):
        subnet = uniform(text)
        items = {item.name: item for item in runtime.pricing(SPEC, LOAD, device).latency(subnet, DECODE)}
        times[text] = items["model.layers.0.mlp.down_proj"]
        layers = items["kernels of each layer"]
        assert layers.ms == pytest.approx(SPEC.num_layers * FITTED.layer_ms["vllm"])
    holding = runtime.holding(SPEC)
    down = SPEC.unit("model.layers.0.mlp.down_proj")
    for text, item in times.items():
        choice, size = Choice.parse(text), holding.unit_bytes(down, Choice.parse(text))
        if kernel(choice) == MARLIN:
            ms, half = 1e3 * size / (FITTED.share["vllm", PACKED] * published_bandwidth(device)), FITTED.half["vllm"]
        else:
            humming = HUMMING_TIMES[choice.bits] * holding.unit_bytes(down, Choice.parse("sym4g32"))
            ms, half = 1e3 * humming / (FITTED.share["vllm", PACKED] * published_bandwidth(device)), math.log(2)
        assert (item.ms, item.spread) == (pytest.approx(ms), pytest.approx(math.sinh(half))), text


@pytest.mark.parametrize("name", ["t4-16gb", "rtx-4090-24gb", "b200-sxm-180gb"])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("grid", GRIDS)
def test_what_no_kernel_of_vllm_runs_is_refused_with_what_fits(name: str, bits: int, grid: str) -> None:
    """Marlin has 4 bits, with zeros or without, and 8 without; Humming the rest from compute capability 7.5."""
    runtime, device = Vllm(), load(name)
    unit, choice = SPEC.unit("model.layers.0.mlp.down_proj"), Choice(bits, 64, grid)
    holding, zeros = runtime.holding(SPEC), grid == "int"
    refusal = holding.unit_refusal(unit, choice)
    runs = bits in (4, 8) if zeros else bits in (2, 3, 4, 5, 6, 7, 8)
    assert (refusal is None) == runs
    if runs:
        assert kernel(choice) == ("Marlin" if bits == 4 or (bits == 8 and not zeros) else "Humming")
    elif zeros and 2 <= bits <= 8:
        fitting = [Choice.parse(word) for word in str(refusal).rpartition("use ")[2].split(" or ")]
        assert len(fitting) == 2 and all(holding.unit_refusal(unit, other) is None for other in fitting)
    older = replace(device, architecture="sm_70")
    assert "needs compute capability 7.5" in str(runtime.device_refusal(older)).replace("need ", "needs ")


def test_weights_without_figures_have_a_band_of_a_factor_of_two() -> None:
    device = load("macbook-air-m3-16gb")
    known, unknown = (read_estimate(device, "mlx", Reading(1e9, PACKED, known)) for known in (True, False))
    assert known.ms == unknown.ms == pytest.approx(1e3 / (100 * FITTED.share["mlx", PACKED]))
    assert (unknown.low_ms, unknown.high_ms) == (pytest.approx(unknown.ms / 2), pytest.approx(2 * unknown.ms))
    assert known.high_ms / known.low_ms == pytest.approx(math.exp(2 * FITTED.half["mlx"]))
    halved = read_estimate(device, "mlx", Reading(1e9, FLOAT, times=0.5))
    assert halved.ms == pytest.approx(500 / (100 * FITTED.share["mlx", FLOAT]))
    spreads = [
        next(i.spread for i in Mlx().pricing(SPEC, LOAD, device).latency(uniform(text), DECODE) if i.unit)
        for text in ("sym3g32", "sym4g32")
    ]
    assert spreads == [pytest.approx(math.sinh(math.log(2))), pytest.approx(math.sinh(FITTED.half["mlx"]))]


def test_several_sequences_at_once_and_a_prompt_are_good_to_a_factor_of_two() -> None:
    device, runtime = load("l4-24gb"), Vllm()
    many = runtime.pricing(SPEC, Workload(128, 8, 32), device).latency(uniform("sym4g32"), DECODE)
    assert {item.spread for item in many if item.unit} == {1.0}
    one = runtime.pricing(SPEC, LOAD, device).latency(uniform("sym4g32"), DECODE)
    assert all(a.ms >= b.ms for a, b in zip(many, one, strict=True))


@pytest.mark.parametrize(("runtime", "count"), [(Vllm(), 38), (Mlx(), 37)])
def test_a_plan_says_what_its_estimate_rests_on(runtime: Runtime, count: int) -> None:
    said = runtime.pricing(SPEC, LOAD, load("l4-24gb")).rests_on()
    assert said is not None and f"rests on {count} decode speeds" in said and "\n" not in said
