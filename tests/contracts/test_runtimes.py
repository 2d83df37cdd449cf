"""What every runtime promises the planner."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from planner.memory import estimate_memory
from planner.request import Workload
from planner.runtimes import RUNTIMES
from planner.runtimes.base import BASES, DECODE, PREFILL, Runtime
from profiles.device import DeviceProfile
from supernet.formats import FORMATS
from supernet.space import Choice, Subnet
from supernet.spec import EMBEDDING, LinearSpec, ModelSpec, UnitSpec
from tests.planner.runtime_fixtures import RoundedModel, save_tiny

DEVICE = DeviceProfile(
    name="test", kind="cpu", vendor="test", model="test", memory_bytes=2**34, measured=False, source="test",
    date="2026-01-01", threads=1, bandwidth_bytes_per_s=2e10, bandwidth_basis="datasheet", int8_ops_per_s=1e12,
    bf16_ops_per_s=1e12,
)  # fmt: skip
WORKLOAD = Workload(128, 1, 32)


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return RUNTIMES[request.param]()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RoundedModel:
    return RoundedModel(save_tiny("qwen2", tmp_path_factory.mktemp("files") / "model", hidden_size=256))


def loadable(runtime: Runtime, spec: ModelSpec) -> Iterator[Subnet]:
    """A subnet for each choice that all units, or all but the tables, can take."""
    for grid, format in FORMATS.items():
        sizes = {bits: 32 if format.block == 1 else format.group_size(bits) for bits in format.widths}
        yield from loadable_of(runtime, spec, [Choice(bits, size, grid) for bits, size in sizes.items()])


def loadable_of(runtime: Runtime, spec: ModelSpec, choices: Sequence[Choice]) -> Iterator[Subnet]:
    holding = runtime.holding(spec)
    for choice in choices:
        options = {unit.name: (choice, choices[-1]) for unit in spec.units}
        kept = {u.name: [c for c in options[u.name] if holding.unit_refusal(u, c) is None] for u in spec.units}
        if all(kept.values()):
            yield Subnet.of({name: choices[0] for name, choices in kept.items()})


def test_names_are_its_own(runtime: Runtime) -> None:
    assert RUNTIMES[runtime.name] is type(runtime)


def test_it_loads_something_and_says_why_not(runtime: Runtime, files: RoundedModel) -> None:
    assert runtime.holding(files.spec).refusal() is None
    assert len({subnet.digest for subnet in loadable(runtime, files.spec)}) > 1
    unit = files.spec.units[1]
    refusal = runtime.holding(files.spec).unit_refusal(unit, Choice(4, 48))
    assert refusal is not None and "48" in refusal


def test_an_unknown_architecture_is_refused(runtime: Runtime) -> None:
    unit = UnitSpec("embed", EMBEDDING, None, (LinearSpec("embed", 64, 64),))
    spec = ModelSpec("odd", "OddForCausalLM", 1, 64, 1, 1, 64, 64, 64, True, 0, (unit,))
    refusal = runtime.holding(spec).refusal()
    assert refusal is not None and "OddForCausalLM" in refusal


@pytest.mark.parametrize(
    ("changes", "reason", "held_by"),
    [
        ({"features": ("clip_qkv",)}, "clip_qkv", ()),
        ({"ropes": ("rope of tomorrow",)}, "rope type rope of tomorrow", ()),
        ({"rotary_dim": 8}, "got 8", ("vllm", "mlx")),  # these compute with the model's own settings
        ({"activation": "quick_gelu"}, "quick_gelu", ("vllm",)),
        ({"windows": (0, None)}, "window", ()),
    ],
)
def test_what_a_graph_would_lose_is_refused_by_name(
    runtime: Runtime, files: RoundedModel, changes: dict[str, Any], reason: str, held_by: tuple[str, ...]
) -> None:
    refusal = runtime.holding(replace(files.spec, **changes)).refusal()
    assert refusal is None if runtime.name in held_by else refusal is not None and reason in refusal


def test_estimates_are_additive_over_units(runtime: Runtime, files: RoundedModel) -> None:
    """The exact solver relies on it: changing one unit changes the items of that unit, and no others."""
    spec, pricing = files.spec, runtime.pricing(files.spec, WORKLOAD, DEVICE)
    first, *_, last = loadable(runtime, spec)
    for unit in spec.units:
        changed = first.replace(unit.name, last[unit.name])
        for items in (
            pricing.memory,
            lambda s: pricing.latency(s, PREFILL),
            lambda s: pricing.latency(s, DECODE),
        ):
            rest = [[item for item in items(s) if item.unit != unit.name] for s in (first, changed)]
            assert rest[0] == rest[1]


def test_every_number_has_a_basis(runtime: Runtime, files: RoundedModel) -> None:
    subnet, pricing = next(loadable(runtime, files.spec)), runtime.pricing(files.spec, WORKLOAD, DEVICE)
    for item in (*pricing.memory(subnet), *pricing.latency(subnet, PREFILL)):
        assert item.basis in BASES
    assert estimate_memory(pricing, subnet).total_bytes > 0


@pytest.mark.parametrize("grid", FORMATS)
def test_written_bytes_are_the_predicted_ones_and_the_package_runs(
    runtime: Runtime, files: RoundedModel, tmp_path: Path, grid: str
) -> None:
    found = {next(iter(subnet))[1].grid: subnet for subnet in loadable(runtime, files.spec)}
    if FORMATS[grid].block > 1 and grid not in found:
        unit, choice = files.spec.units[1], Choice(4, FORMATS[grid].group_size(4), grid)
        refusal = runtime.holding(files.spec).unit_refusal(unit, choice)
        assert refusal is not None and f"got {grid}; train with one of them" in refusal
        return
    subnet = found[grid]
    runtime.packages.write(files, subnet, WORKLOAD, 1, tmp_path)
    holding = runtime.holding(files.spec)
    predicted = sum(holding.unit_bytes(unit, subnet[unit.name]) for unit in files.spec.units)
    predicted += holding.rest_bytes(WORKLOAD, files.model_dir)
    assert predicted == sum((tmp_path / name).stat().st_size for name in runtime.packages.weight_files)
    check_pieces(runtime, tmp_path)
    engine = runtime.engine()
    if engine is not None:
        served = engine.server(tmp_path).measure(WORKLOAD)
        assert served.peak_bytes > predicted and served.ttft_ms > 0 and served.tpot_ms > 0


def check_pieces(runtime: Runtime, folder: Path) -> None:
    """They cover every file in order, and each tensor is one of them."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    found = runtime.packages.pieces(folder, sizes)
    assert found.keys() == sizes.keys()
    for name, pieces in found.items():
        assert [piece.offset for piece in pieces] == list(accumulate([0, *(p.bytes for p in pieces)]))[: len(pieces)]
        assert sum(piece.bytes for piece in pieces) == sizes[name]
        assert all(piece.bytes > 0 for piece in pieces)
    names = [piece.name for pieces in found.values() for piece in pieces if piece.name]
    assert len(names) == len(set(names)) > 10


def test_planning_imports_neither_torch_nor_the_runtime(runtime: Runtime) -> None:
    code = "import sys, planner.runtimes, planner.memory, planner.latency; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "onnx", "onnxruntime", "onnxruntime_genai"} & set(loaded)
