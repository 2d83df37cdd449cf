"""A mixture's experts: as many are priced as are expected to be read, and a plan says what that rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from planner import mixture
from planner.latency import estimate_latency
from planner.request import Workload
from planner.runtimes import RUNTIMES
from planner.runtimes.base import LatencyItem
from planner.runtimes.llamacpp import amounts
from profiles.catalog import load
from profiles.gpu_tables import package
from supernet.model import spec_of
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec
from tests.profiles.gpu_tables import made_up
from tests.tiny import tiny_config

GPU = load("rtx-4090-24gb")
HOSTED = replace(GPU, host=load("laptop-i5-1240p-8gb"))
PLACES = {
    "llama.cpp on a processor": ("llamacpp", load("laptop-i5-1240p-8gb"), None),
    "llama.cpp on a GPU": ("llamacpp", HOSTED, 3),
    "llama.cpp on a GPU's host": ("llamacpp", HOSTED, 1),
    "vLLM by bandwidth": ("vllm", GPU, None),
}
UNEVEN = (8, 4, 2, 1, 1, 0, 0, 0)  # of 8 tokens that choose two each


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_local_experts": 8, "max_position_embeddings": 4096}
    return spec_of(tiny_config("mixtral", **sizes), "mixture")


def counted(spec: ModelSpec, first: tuple[int, ...]) -> ModelSpec:
    """With the experts of the first layer chosen so, and those of the second evenly."""
    counts = {0: first, 1: (2,) * 8}
    units = (u if u.chosen is None else replace(u, chosen_by=counts[u.layer or 0]) for u in spec.units)
    return replace(spec, units=tuple(units))


def decoded(spec: ModelSpec, place: str, batch: int) -> dict[str, LatencyItem]:
    name, device, layers = PLACES[place]
    runtime = RUNTIMES[name]()
    spec = runtime.tied(spec)
    subnet = Subnet.of({unit.name: Choice(4, 32, "sym") for unit in spec.units})
    pricing = runtime.pricing(spec, Workload(1024, batch, 128, gpu_layers=layers), device)
    return {item.name: item for item in estimate_latency(pricing, subnet).decode}


def falls(before: dict[str, LatencyItem], after: dict[str, LatencyItem], share: float) -> None:
    """Of the first layer's experts alone, by this share; within 3 %, which the rows take that go in and out."""
    for name, item in before.items():
        expected = share if name.startswith("model.layers.0.mlp.experts") else 1.0
        assert after[name].ms == pytest.approx(expected * item.ms, rel=0.03 if expected < 1 else 1e-9), name


@pytest.mark.parametrize("place", PLACES)
def test_several_sequences_take_less_where_experts_are_chosen_unevenly(spec: ModelSpec, place: str) -> None:
    """8 tokens read 4.2 experts then, and 7.2 where all are as likely; one token two in either case."""
    even, uneven = counted(spec, (2,) * 8), counted(spec, UNEVEN)
    (first, *_), (other, *_) = (
        [unit for unit in one.units if unit.layer == 0 and unit.chosen] for one in (uneven, even)
    )
    assert (first.experts_read(8), other.experts_read(8)) == (pytest.approx(4.209, abs=1e-3), 8 * (1 - 0.75**8))
    falls(decoded(even, place, 8), decoded(uneven, place, 8), first.experts_read(8) / other.experts_read(8))
    falls(decoded(even, place, 1), decoded(uneven, place, 1), 1.0)
    falls(decoded(spec, place, 8), decoded(even, place, 8), 1.0)  # nobody counted: as if all were as likely


def test_kernels_that_others_measured_read_fewer_experts_as_well(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    folder = made_up.write(tmp_path)
    monkeypatch.setattr(package, "root", lambda: folder)
    monkeypatch.setitem(PLACES, "vLLM by tables", ("vllm", load("h100-sxm-80gb"), None))
    before, after = (decoded(counted(spec, first), "vLLM by tables", 8) for first in ((2,) * 8, UNEVEN))
    lower = [name for name in before if after[name].ms < before[name].ms]
    assert lower == [name for name in before if name.startswith("model.layers.0.mlp.experts")] and lower


def test_a_plan_says_whether_choices_were_counted(spec: ModelSpec) -> None:
    asked = Workload(1024, 8, 128)
    said: Callable[[ModelSpec], list[str]] = lambda spec: list(mixture.notes(spec, asked))  # noqa: E731
    assert said(counted(spec, UNEVEN)) == [
        "a step is taken to read 5.704 of 8 experts of a layer, a prompt 6.5, chosen as often as by 8 tokens of the "
        "text that the codes were found with"
    ]
    (line,) = said(spec)
    assert line.startswith("a step is taken to read 7.199 of 8 experts of a layer, a prompt 8, each chosen as often")
    assert "nobody counted" in line and "\n" not in line
    some = replace(spec, units=tuple(u if u.layer else replace(u, chosen_by=()) for u in counted(spec, UNEVEN).units))
    assert "nobody counted" in said(some)[0]
    assert said(spec_of(tiny_config("llama"), "dense")) == []


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("first", [UNEVEN, (2,) * 8])
def test_all_rows_go_through_as_many_experts_as_are_read(spec: ModelSpec, first: tuple[int, ...], rows: int) -> None:
    """Each row through two, and no product of more rows than another's and one."""
    for unit in counted(spec, first).units:
        found = amounts.passed(spec, unit, rows)
        if unit.chosen is None:
            assert found == tuple((1, rows, k, n) for k, n in amounts.products(spec, unit))
            continue
        assert sum(count for count, *_ in found) == pytest.approx(unit.experts_read(rows), rel=1e-9)
        assert sum(count * each for count, each, *_ in found) == pytest.approx(2 * rows, rel=1e-9)
        numbers = [each for _, each, *_ in found]
        assert max(numbers) - min(numbers) <= 1 <= min(numbers)
