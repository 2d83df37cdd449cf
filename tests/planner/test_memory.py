"""Memory: the items sum to what a process was seen to take, and follow the workload."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.memory import estimate_memory
from planner.request import Workload
from planner.runtimes.onnxruntime import costs, fresh, memory
from planner.runtimes.onnxruntime.calibrate import RandomLlama, small_llama
from planner.runtimes.onnxruntime.export import write_model
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from profiles.device import Calibration, DeviceProfile
from supernet.space import Choice, Subnet

RUNTIME = OnnxRuntime()
SPEC = small_llama(3)


def device(**calibrated: float) -> DeviceProfile:
    found = tuple(Calibration(costs.RUNTIME, name, value, costs.UNITS[name]) for name, value in calibrated.items())
    return DeviceProfile(
        name="test", kind="cpu", vendor="test", model="test", memory_bytes=2**34, measured=bool(found), source="test",
        date="2026-01-01", calibrations=found,
    )  # fmt: skip


def subnet(bits: int, group_size: int = 32) -> Subnet:
    return Subnet.of({unit.name: Choice(max(bits, 4) if unit.is_table else bits, group_size) for unit in SPEC.units})


def total(bits: int = 4, context: int = 512, batch: int = 1, prompt: int = 64) -> int:
    return estimate_memory(RUNTIME, SPEC, subnet(bits), Workload(context, batch, prompt), device()).total_bytes


def test_the_kv_cache_is_counted_for_the_whole_context_of_every_sequence() -> None:
    token = 2 * SPEC.num_layers * SPEC.num_kv_heads * SPEC.head_dim * 4
    rotary = 2 * (SPEC.head_dim // 2) * 4
    assert total(context=2000) - total(context=1000) == 1000 * (token + rotary)
    items = {i.name: i.bytes for i in memory.items(SPEC, subnet(4), Workload(512, 3, 64), device())}
    assert items["KV cache"] == 3 * 512 * token


def test_more_bits_a_longer_prompt_and_more_sequences_take_more() -> None:
    assert total(bits=2) < total(bits=4) < total(bits=8)
    assert total(prompt=64) < total(prompt=500)
    assert total(batch=1) < total(batch=2)


def test_items_name_the_unit_that_a_choice_changes_them_for() -> None:
    """What no unit is named for is the same whatever the units are."""
    workload = Workload(64, 1, 16)
    small, large = (memory.items(SPEC, subnet(bits), workload, device()) for bits in (4, 8))
    assert [i for i in small if i.unit is None] == [i for i in large if i.unit is None]
    assert {i.unit for i in small} == {None, *(unit.name for unit in SPEC.units)}


def test_every_item_says_where_its_number_comes_from() -> None:
    workload = Workload(512, 1, 64)
    usual = estimate_memory(RUNTIME, SPEC, subnet(4), workload, device())
    assert usual.basis == "estimate" and {i.basis for i in usual.items} == {"exact", "modelled", "estimate"}
    calibrated = device(base_bytes=7e7, activation_factor=1.5)
    measured = estimate_memory(RUNTIME, SPEC, subnet(4), workload, calibrated)
    assert measured.basis == "modelled"
    assert {i.name: i.bytes for i in measured.items}["runtime"] == 70_000_000


def test_a_tied_table_counts_while_it_loads_only_where_the_cache_is_smaller() -> None:
    choice = Choice(8, 32)
    codes = 4096 * 256
    assert memory.overlap_bytes(SPEC, choice, Workload(2048, 1, 16), 1.6) == 0
    assert 0 < memory.overlap_bytes(SPEC, choice, Workload(16, 1, 1), 1.6) < codes


@pytest.mark.parametrize(("prompt", "context"), [(16, 128), (512, 2048)])
def test_predicted_peak_is_within_a_tenth_of_the_measured(tmp_path: Path, prompt: int, context: int) -> None:
    files = RandomLlama(3, tmp_path / "model")
    (tmp_path / "package").mkdir()
    write_model(files, subnet(4), context, 1, tmp_path / "package")
    measured = fresh.measure(tmp_path / "package", prompt, context, new_tokens=4, repeats=1).peak_bytes
    predicted = estimate_memory(RUNTIME, SPEC, subnet(4), Workload(context, 1, prompt), device()).total_bytes
    assert predicted == pytest.approx(measured, rel=0.1)
