"""What vLLM takes on a GPU whose products were timed: those times, and what was known for the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.request import Workload
from planner.runtimes.base import DECODE, MEASURED, MODELLED, PREFILL, LatencyItem
from planner.runtimes.shapes import Shape
from planner.runtimes.vllm.runtime import Vllm
from profiles.catalog import load
from profiles.gpu_ways import FLOAT_BITS, FLOAT_GROUP, TORCH
from profiles.kernels import KernelEntry, KernelTable
from supernet.space import Choice, Subnet
from supernet.spec import EMBEDDING, HEAD

RUNTIME = Vllm()
SPEC = RUNTIME.tied(replace(Shape("small", 2, 256, 768, 4, 2, 64, 4096).spec(), architecture="LlamaForCausalLM"))
WORKLOAD = Workload(512, 1, 16)
GPU = load("rtx-3090-24gb")
MARLIN, HUMMING = Choice(4, 32, "sym"), Choice(3, 64, "sym")


def times(
    bits: int, group: int, rows: int, shape: tuple[int, int], ms: float, kernel: str, runtime: str = "vllm"
) -> KernelEntry:
    return KernelEntry(runtime, bits, group, rows, *shape, 1, ms, ms, ms, 9, kernel)


def products() -> dict[str, tuple[int, int]]:
    """What each unit multiplies by."""
    return {
        unit.name: (unit.linears[0].in_features, sum(linear.out_features for linear in unit.linears))
        for unit in SPEC.units
    }


def table(bits: int, group: int, kernel: str, rows: tuple[int, ...] = (1, 16)) -> list[KernelEntry]:
    """A millisecond for each row and thousand outputs."""
    shapes = dict.fromkeys(products()[unit.name] for unit in SPEC.units if unit.role != EMBEDDING)
    return [times(bits, group, n, shape, n * shape[1] / 1000, kernel) for shape in shapes for n in rows]


def items(entries: list[KernelEntry], choice: Choice, phase: str = DECODE) -> dict[str, LatencyItem]:
    device = replace(GPU, kernels=KernelTable(tuple(entries)))
    subnet = Subnet.of({unit.name: choice for unit in SPEC.units})
    found = RUNTIME.pricing(SPEC, WORKLOAD, device).latency(subnet, phase)
    return {item.name: item for item in found}


def test_products_take_what_they_took_and_the_rest_what_it_did() -> None:
    known, found = items([], MARLIN), items(table(4, 32, "Marlin"), MARLIN)
    assert known.keys() == found.keys()
    for unit in SPEC.units:
        if unit.role != EMBEDDING:
            assert found[unit.name].ms == pytest.approx(products()[unit.name][1] / 1000)
            assert found[unit.name].basis == MEASURED
    linears = {unit.name for unit in SPEC.units if unit.role != EMBEDDING}
    assert {name: item for name, item in known.items() if name not in linears} == {
        name: item for name, item in found.items() if name not in linears
    }


def test_a_prompt_takes_its_rows_and_a_head_the_last() -> None:
    found = items(table(4, 32, "Marlin"), MARLIN, PREFILL)
    for unit in SPEC.units:
        if unit.role != EMBEDDING:
            rows = 1 if unit.role == HEAD else 16
            assert found[unit.name].ms == pytest.approx(rows * products()[unit.name][1] / 1000)


def test_what_was_not_timed_is_as_it_was() -> None:
    assert items(table(4, 32, "Marlin"), HUMMING) == items([], HUMMING)


def test_other_groups_count_by_their_bytes_and_are_modelled() -> None:
    exact, found = (items(table(3, group, "Humming"), HUMMING) for group in (64, 128))
    name = next(unit.name for unit in SPEC.units if unit.role not in (EMBEDDING, HEAD))
    assert exact[name].basis == MEASURED
    assert found[name].basis == MODELLED
    assert found[name].ms == pytest.approx(exact[name].ms * (3 + 16 / 64) / (3 + 16 / 128))
    assert found[name].spread >= 0.3


def test_humming_stands_in_for_a_kernel_that_was_not_timed() -> None:
    name = next(unit.name for unit in SPEC.units if unit.role not in (EMBEDDING, HEAD))
    found = items(table(4, 32, "Humming"), MARLIN)
    assert (found[name].ms, found[name].basis) == (pytest.approx(products()[name][1] / 1000), MODELLED)


def test_a_tied_table_is_a_product_of_floats() -> None:
    table_unit = SPEC.units[0]
    assert SPEC.tied
    shape = products()[table_unit.name]
    entries = [*table(4, 32, "Marlin"), times(FLOAT_BITS, FLOAT_GROUP, 1, shape, 0.5, "bfloat16", TORCH)]
    assert items(entries, MARLIN)[table_unit.name].ms == 0.5


def test_a_plan_says_what_was_timed() -> None:
    device = replace(GPU, kernels=KernelTable(tuple(table(4, 32, "Marlin"))))
    said = RUNTIME.pricing(SPEC, WORKLOAD, device).rests_on()
    assert said is not None
    assert said.startswith(f"products were timed on {GPU.model}")
