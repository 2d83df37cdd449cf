"""Memory: the items sum to what a process was seen to take, and follow the workload."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from planner.bands import bands
from planner.limits import MEMORY
from planner.memory import estimate_memory
from planner.request import Workload
from planner.runtimes.onnxruntime import costs, fresh, memory, random_package
from planner.runtimes.onnxruntime.export import write_model
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.shapes import Shape
from profiles.device import Calibration, DeviceProfile
from supernet.space import Choice, Subnet
from supernet.spec import HEAD
from tests.planner.runtime_fixtures import RoundedModel, save_tiny

RUNTIME = OnnxRuntime()
SMALL = Shape("small", 3, 256, 768, 4, 2, 64, 4096)
MID = Shape("mid", 8, 640, 1792, 10, 2, 64, 32768)
HUGGING_FACE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5,
}  # fmt: skip
SPEC = SMALL.spec()


def device(**calibrated: float) -> DeviceProfile:
    found = tuple(Calibration("onnxruntime", name, value, costs.UNITS[name]) for name, value in calibrated.items())
    return DeviceProfile(
        name="test", kind="cpu", vendor="test", model="test", memory_bytes=2**34, measured=bool(found), source="test",
        date="2026-01-01", calibrations=found,
    )  # fmt: skip


BAND = bands(device(), "onnxruntime")[MEMORY]
"""Nothing was measured of this device: the usual process is what all of it rests on."""


def subnet(bits: int, group_size: int = 32) -> Subnet:
    return Subnet.of({unit.name: Choice(max(bits, 4) if unit.is_table else bits, group_size) for unit in SPEC.units})


def chosen(shape: Shape, bits: int, table: int, head: int, group_size: int = 32, grid: str = "int") -> Subnet:
    bits_of = {"embedding": table, HEAD: head}
    return Subnet.of({u.name: Choice(bits_of.get(u.role, bits), group_size, grid) for u in shape.spec().units})


def total(bits: int = 4, context: int = 512, batch: int = 1, prompt: int = 64) -> int:
    return estimate_memory(RUNTIME.pricing(SPEC, Workload(context, batch, prompt), device()), subnet(bits)).total_bytes


def test_the_kv_cache_is_counted_for_the_whole_context_of_every_sequence() -> None:
    token = 2 * SPEC.num_layers * SPEC.num_kv_heads * SPEC.head_dim * 4
    rotary = 2 * (SPEC.head_dim // 2) * 4
    assert total(context=2000) - total(context=1000) == 1000 * (token + rotary)
    items = {i.name: i.bytes for i in memory.items(SPEC, subnet(4), Workload(512, 3, 64), device())}
    assert items["KV cache"] == 3 * 512 * token


def test_more_bits_and_more_sequences_take_more_and_a_longer_prompt_does_not() -> None:
    """What is planned holds for every prompt that fits the context."""
    assert total(bits=2) < total(bits=4) < total(bits=8)
    assert total(prompt=64) == total(prompt=500)
    assert total(batch=1) < total(batch=2)


def test_items_name_the_unit_that_a_choice_changes_them_for() -> None:
    """What no unit is named for is the same whatever the units are."""
    workload = Workload(64, 1, 16)
    small, large = (memory.items(SPEC, subnet(bits), workload, device()) for bits in (4, 8))
    assert [i for i in small if i.unit is None] == [i for i in large if i.unit is None]
    assert {i.unit for i in small} == {None, *(unit.name for unit in SPEC.units)}


def test_every_item_says_where_its_number_comes_from() -> None:
    workload = Workload(512, 1, 64)
    usual = estimate_memory(RUNTIME.pricing(SPEC, workload, device()), subnet(4))
    assert usual.basis == "estimate" and {i.basis for i in usual.items} == {"exact", "modelled", "estimate"}
    calibrated = device(base_bytes=7e7, activation_factor=1.5)
    measured = estimate_memory(RUNTIME.pricing(SPEC, workload, calibrated), subnet(4))
    assert measured.basis == "estimate" and {i.name: i.basis for i in measured.items}["activations"] == "measured"
    layers = SPEC.num_layers * costs.USUAL[costs.LAYER_BYTES]
    assert {i.name: i.bytes for i in measured.items}["runtime"] == 70_000_000 + layers


def test_the_loading_head_counts_only_where_nothing_that_follows_is_larger() -> None:
    """Wide tables over few layers: at load the head's codes are there twice, before anything else is."""
    few = replace(MID, layers=1, tied=False, vocabulary=2**16)
    item = {i.name: i.bytes for i in memory.items(few.spec(), chosen(few, 4, 4, 8), Workload(64, 1, 16), device())}
    assert 0 < item["loading the head"] < few.hidden * few.vocabulary
    many = replace(few, layers=24)
    assert sum(i.bytes for i in memory.items(many.spec(), chosen(many, 4, 4, 8), Workload(64, 1, 16), device())
               if i.name == "loading the head") == 0  # fmt: skip


def test_what_processes_differ_by_is_kept_in_reserve() -> None:
    found = Calibration("onnxruntime", costs.BASE, 7e7, "bytes", 0.02)
    steady, noisy = device(), replace(device(base_bytes=7e7), calibrations=(found,))
    items = [{i.name: i.bytes for i in memory.items(SPEC, subnet(4), Workload(64, 1, 16), d)} for d in (steady, noisy)]
    assert items[0]["reserve"] == memory.RESIDUAL_BYTES
    assert items[1]["reserve"] == memory.RESIDUAL_BYTES + 1_400_000


CASES = [  # shape; bits of linears, embedding, head; group size; grid; context
    (SMALL, 4, 4, 4, 32, "int", 512), (SMALL, 2, 8, 8, 128, "int", 2048), (MID, 8, 8, 8, 32, "int", 1024),
    (MID, 2, 4, 4, 64, "int", 300), (replace(MID, tied=False), 4, 4, 8, 128, "int", 2048),
    (replace(MID, tied=False, layers=1), 4, 4, 8, 32, "int", 64), (MID, 2, 8, 8, 64, "sym", 300),
    (MID, 4, 8, 8, 32, "sym", 1024), (replace(MID, tied=False), 8, 8, 8, 32, "sym", 512),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "bits", "table", "head", "group_size", "grid", "context"), CASES)
def test_no_prompt_takes_more_than_planned(
    tmp_path: Path, shape: Shape, bits: int, table: int, head: int, group_size: int, grid: str, context: int
) -> None:
    picked = chosen(shape, bits, table, head, group_size, grid)
    package = random_package.write(shape, picked, context, 1, tmp_path / "package")
    measured = fresh.measure(package, context - 4, context, new_tokens=4, repeats=1).peak_bytes
    planned = estimate_memory(RUNTIME.pricing(shape.spec(), Workload(context, 1, 8), device()), picked).total_bytes
    assert measured <= planned * (1 + BAND)
    assert planned - measured <= 0.03 * measured + 5e6


def test_several_sequences_are_planned_for_prompts_of_the_whole_context(tmp_path: Path) -> None:
    """The runtime does not chunk them."""
    picked, workload = chosen(SMALL, 4, 4, 4), Workload(1024, 3, 8)
    package = random_package.write(SMALL, picked, 1024, 1, tmp_path / "package", batch=3)
    measured = fresh.measure(package, 1020, 1024, batch=3, new_tokens=4, repeats=1).peak_bytes
    planned = estimate_memory(RUNTIME.pricing(SPEC, workload, device()), picked).total_bytes
    assert 0.9 * planned <= measured <= planned * (1 + BAND)


@pytest.mark.parametrize("grid", ["int", "sym"])
def test_a_random_package_has_the_graph_of_an_exported_one(tmp_path: Path, grid: str) -> None:
    """Node by node: what is measured on the one holds for the other."""
    shape = Shape("tiny", 2, 64, 128, 4, 2, 16, 512)
    files = RoundedModel(save_tiny("llama", tmp_path / "model", **HUGGING_FACE))
    assert replace(shape.spec(), name=files.spec.name, max_context=files.spec.max_context) == files.spec
    picked = chosen(shape, 4, 8, 8, grid=grid)
    (tmp_path / "exported").mkdir()
    write_model(files, picked, 64, 1, tmp_path / "exported")
    random_package.write(shape, picked, 64, 1, tmp_path / "random")
    assert described(tmp_path / "random") == described(tmp_path / "exported")


def described(package: Path) -> tuple[list[object], list[object]]:
    import onnx

    def plain(attribute: onnx.AttributeProto) -> object:
        found = onnx.helper.get_attribute_value(attribute)
        return found.raw_data if isinstance(found, onnx.TensorProto) else found

    graph = onnx.load(package / "model.onnx", load_external_data=False).graph
    nodes = [(n.op_type, list(n.input), list(n.output), {a.name: plain(a) for a in n.attribute}) for n in graph.node]
    return nodes, sorted((i.name, list(i.dims)) for i in graph.initializer)
