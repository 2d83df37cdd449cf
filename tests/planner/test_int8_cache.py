"""ONNX Runtime's KV cache of 8-bit integers: what the graph says, what it allocates and loses, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from planner.answers import from_proof
from planner.package import Package, write_package
from planner.request import Workload
from planner.rows import BROKEN
from planner.runtimes.calibrated import SCORES, factor_of
from planner.runtimes.onnxruntime import cache, costs, fresh, memory, random_package, scales
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.shapes import Shape
from profiles.device import DeviceProfile
from records.errors import InputError
from supernet.said import split
from supernet.space import Choice, Subnet
from tests.planner.packages import tiny_plan
from tests.planner.runtime_fixtures import RoundedModel, save_tiny

RUNTIME = OnnxRuntime()
FLOATS, ROUNDED = Workload(192, 1, 32), Workload(192, 1, 32, "int8")
ELEMENT = {"f32": 4, "int8": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RoundedModel:
    return RoundedModel(save_tiny("llama", tmp_path_factory.mktemp("files") / "model"))


@pytest.fixture(scope="module")
def packages(files: RoundedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    """Of one subnet, with keys and values as floats and as int8."""
    folder = tmp_path_factory.mktemp("packages")
    return {
        name: write_package(RUNTIME, files, tiny_plan(files, workload), folder / name)
        for name, workload in (("f32", FLOATS), ("int8", ROUNDED))
    }


def graph_of(package: Package) -> Any:
    return onnx.load(package.path / "model.onnx", load_external_data=False).graph


def test_the_graph_reserves_what_was_predicted(packages: dict[str, Package], files: RoundedModel) -> None:
    for name, package in packages.items():
        package.check(RUNTIME)
        read = [value for value in graph_of(package).input if value.name.startswith("past_key_values.")]
        sizes = {onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).itemsize for v in read}
        shapes = {tuple(v.type.tensor_type.shape.dim[i].dim_value for i in (1, 3)) for v in read}
        assert sizes == {ELEMENT[name]} and shapes == {(files.spec.num_kv_heads, files.spec.head_dim)}
        reserved = len(read) * ELEMENT[name] * 192 * files.spec.num_kv_heads * files.spec.head_dim
        assert memory.kv_bytes(files.spec, package.plan.workload) == reserved
    weights = [package.files["model.onnx.data"] for package in packages.values()]
    assert weights[0] == weights[1]


def test_answers_differ_by_the_rounding_of_the_cache_alone(packages: dict[str, Package]) -> None:
    windows = np.random.default_rng(0).integers(3, 200, (2, 150))
    floats, rounded, unrounded = (
        fresh.logits(packages[name].path, windows, unrounded=unrounded)
        for name, unrounded in (("f32", False), ("int8", False), ("int8", True))
    )
    assert (floats == unrounded).all()
    assert 0 < np.abs(rounded - floats).mean() < 0.03 * floats.std()


def test_torch_rounds_as_the_runtime_does(packages: dict[str, Package], files: RoundedModel) -> None:
    """What the first layer caches of a text, to the digit."""
    ids, found = np.random.default_rng(0).integers(3, 200, (1, 100)), {}
    for name, kind in (("f32", np.float32), ("int8", np.int8)):
        session = onnxruntime.InferenceSession(packages[name].path / "model.onnx")
        shape = (1, files.spec.num_kv_heads, 0, files.spec.head_dim)
        given = {one.name: np.zeros(shape, kind) for one in session.get_inputs() if one.name.startswith("past")}
        given |= {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        found[name] = session.run(["present.0.key", "present.0.value"], given)
    model, known = files.subnet_model(packages["int8"].plan.subnet), files.evidence()
    keep = RUNTIME.kept(cache.INT8, files.spec, model, list(split(known["tokens"], known["lengths"])))
    tensors = {one.name: one for one in graph_of(packages["int8"]).initializer}
    constants = {kind: onnx.numpy_helper.to_array(tensors[f"kv_cache.0.{kind}_scale"]) for kind in "kv"}
    for kind, ours, theirs in zip("kv", keep(0, *map(torch.from_numpy, found["f32"])), found["int8"], strict=True):
        assert np.allclose(ours.numpy(), theirs * constants[kind], rtol=1e-6, atol=0)


def test_what_is_promised_holds_and_what_the_cache_loses_is_told(packages: dict[str, Package]) -> None:
    rows = {row.name: row for row in from_proof(RUNTIME, packages["int8"])}
    assert not [row for row in rows.values() if row.verdict == BROKEN]
    kept = rows["KL to the supernet, int8 cache"]
    assert kept.measured is not None and 0 < kept.measured < 0.01 and not kept.promises
    assert rows["KL to the supernet"].holds
    assert "KL to the supernet, f32 cache" not in {row.name for row in from_proof(RUNTIME, packages["f32"])}


@pytest.mark.parametrize(("name", "workload"), [("f32", ROUNDED), ("int8", FLOATS)])
def test_another_type_than_the_plan_says_is_refused(
    packages: dict[str, Package], name: str, workload: Workload
) -> None:
    package = packages[name]
    other = replace(package, plan=replace(package.plan, workload=workload))
    with pytest.raises(InputError, match=f"the plan keeps keys and values as {RUNTIME.cache(workload).name}"):
        other.check(RUNTIME)


def test_scales_hold_what_the_subnet_caches(packages: dict[str, Package], files: RoundedModel) -> None:
    """Each with room above the largest that was seen, in sixteenths of an octave; the same again."""
    plan = packages["int8"].plan
    made = scales.scales_of(files, plan.subnet)
    assert sorted(made) == list(range(files.spec.num_layers))
    found = [i for i in graph_of(packages["int8"]).initializer if i.name.startswith("kv_cache.")]
    kept = {i.name: onnx.numpy_helper.to_array(i) for i in found}
    for layer, parts in made.items():
        for kind, scale in zip("kv", parts, strict=True):
            assert (kept[f"kv_cache.{layer}.{kind}_scale"][0, :, 0] == scale).all()
            assert scale.shape == (files.spec.num_kv_heads, files.spec.head_dim) and (scale > 0).all()
            steps = np.log2(scale.astype(np.float64)) * scales.STEPS
            assert np.abs(steps - steps.round()).max() < 1e-4


@pytest.mark.parametrize("rotary_dim", [8, 4])
def test_a_scale_holds_a_key_wherever_it_stands(rotary_dim: int) -> None:
    """The largest that a channel becomes at any position is the length of its pair."""
    keys = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, 5, 8)))
    lengths = scales.pair_lengths(keys, rotary_dim)
    half, seen = rotary_dim // 2, keys.abs()
    for angle in np.linspace(0, 2 * np.pi, 721):
        first, second = keys[..., :half], keys[..., half:rotary_dim]
        cos, sin = np.cos(angle), np.sin(angle)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin, keys[..., rotary_dim:]], -1)
        seen = torch.maximum(seen, turned.abs())
    assert (seen <= lengths + 1e-9).all() and (seen > 0.999 * lengths).all()


def test_keys_that_turn_otherwise_are_refused(files: RoundedModel) -> None:
    refusal = RUNTIME.holding(replace(files.spec, architecture="Ernie4_5ForCausalLM")).cache_refusal(cache.INT8)
    assert refusal is not None and "turn in halves" in refusal
    assert RUNTIME.holding(files.spec).cache_refusal(cache.INT8) is None


def test_serving_takes_less_memory_by_what_the_cache_does(tmp_path: Path) -> None:
    shape, context = Shape("small", 8, 128, 256, 4, 4, 64, 512, max_context=4096), 4096
    spec, found = shape.spec(), {}
    subnet = Subnet.of({unit.name: Choice(8, 32, "sym") for unit in spec.units})
    for kept in cache.CACHES:
        folder = random_package.write(shape, subnet, context, 1, tmp_path / kept.name, cache=kept)
        found[kept.name] = fresh.measure(folder, 32, context, new_tokens=4, repeats=1).peak_bytes
    sizes = [memory.kv_bytes(spec, Workload(context, kv_cache=name)) for name in found]
    assert sizes[0] == 4 * sizes[1] == 8 * 2 * 4 * 64 * context * 4
    assert found["f32"] - found["int8"] == pytest.approx(sizes[0] - sizes[1], rel=0.15)


def test_a_score_takes_what_its_cache_does() -> None:
    device = DeviceProfile(
        name="test", kind="cpu", vendor="test", model="test", memory_bytes=2**34, measured=False, source="test",
        date="2026-01-01", threads=1,
    )  # fmt: skip
    for phase, plain in SCORES.items():
        factor = factor_of(cache.INT8, phase)
        assert costs.KNOWN.score_ns(device, phase, cache.CACHES[0])[0] == costs.USUAL[plain]
        assert costs.KNOWN.score_ns(device, phase, cache.INT8)[0] == costs.USUAL[plain] * costs.USUAL[factor]
