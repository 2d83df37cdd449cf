"""Exported packages of every supported family, against the plain model with the subnet's weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from planner.request import Workload
from planner.runtimes.onnxruntime import fresh, storage, template
from planner.runtimes.onnxruntime.export import CONFIG, WEIGHTS, write_model
from planner.runtimes.onnxruntime.packing import pack, unpack
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from supernet.space import Choice, Subnet
from tests.planner.runtime_fixtures import FAMILIES, RoundedModel, mixed, save_tiny

CONTEXT = 96
RUNTIME = OnnxRuntime()


@pytest.fixture(scope="module", params=FAMILIES)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RoundedModel, Subnet, Path]:
    root = tmp_path_factory.mktemp(request.param)
    files = RoundedModel(save_tiny(request.param, root / "model"))
    subnet, out = mixed(files.spec), root / "package"
    out.mkdir()
    write_model(files, subnet, CONTEXT, 1, out)
    return files, subnet, out


def divergence(ours: np.ndarray, theirs: np.ndarray) -> float:
    """KL per token in nats."""
    ours, theirs = (torch.from_numpy(np.asarray(x)).double().log_softmax(-1) for x in (ours, theirs))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def test_logits_are_those_of_the_dequantized_model(exported: tuple[RoundedModel, Subnet, Path]) -> None:
    files, subnet, out = exported
    windows = np.random.default_rng(0).integers(3, files.spec.vocab_size, (2, 48))
    with torch.no_grad():
        expected = files.dequantized(subnet)(torch.from_numpy(windows)).logits.numpy()
    found = fresh.logits(out, windows)
    assert divergence(expected, found) < 0.001
    assert np.abs(expected - found).max() < 0.2 * expected.std()


def test_predicted_bytes_are_the_bytes_on_disk(exported: tuple[RoundedModel, Subnet, Path]) -> None:
    files, subnet, out = exported
    predicted = sum(RUNTIME.disk_bytes(files.spec, unit, subnet[unit.name]) for unit in files.spec.units)
    predicted += RUNTIME.fixed_disk_bytes(files.spec, Workload(CONTEXT, 1, 16))
    assert predicted == (out / WEIGHTS).stat().st_size


def test_the_package_generates_within_the_workloads_context(exported: tuple[RoundedModel, Subnet, Path]) -> None:
    _, _, out = exported
    assert json.loads((out / CONFIG).read_text())["search"]["max_length"] == CONTEXT
    assert (out / "tokenizer.json").exists()
    found = fresh.measure(out, 32, CONTEXT, new_tokens=8, repeats=1)
    assert found.peak_bytes > found.loaded_bytes // 2 > 0
    assert found.ttft_ms > 0 and found.tpot_ms > 0


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> RoundedModel:
    return RoundedModel(save_tiny("llama", tmp_path_factory.mktemp("llama") / "model", hidden_size=256))


@pytest.mark.parametrize("group_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_loadable_choice_loads(llama: RoundedModel, tmp_path: Path, bits: int, group_size: int) -> None:
    choice, table = Choice(bits, group_size), Choice(max(bits, 4), group_size)
    spec = llama.spec
    linear = next(unit for unit in spec.units if not unit.is_table)
    if RUNTIME.refusal(spec, linear, choice):
        assert (bits, group_size) in ((2, 16), (2, 256))
        return
    subnet = Subnet.of({unit.name: table if unit.is_table else choice for unit in spec.units})
    write_model(llama, subnet, CONTEXT, 1, tmp_path)
    windows = np.random.default_rng(1).integers(3, spec.vocab_size, (1, 32))
    with torch.no_grad():
        expected = llama.dequantized(subnet)(torch.from_numpy(windows)).logits.numpy()
    assert divergence(expected, fresh.logits(tmp_path, windows)) < 0.001


@pytest.mark.parametrize(
    ("unit", "choice", "reason"),
    [
        ("model.layers.0.mlp.down_proj", "int3g32", "loads 2, 4 and 8 bits, got 3"),
        ("model.layers.0.mlp.down_proj", "int5g32", "loads 2, 4 and 8 bits, got 5"),
        ("model.layers.0.mlp.down_proj", "int4g512", "group sizes 16, 32, 64, 128, 256, got 512"),
        ("model.layers.0.mlp.down_proj", "int4g48", "group sizes"),
        ("model.layers.0.mlp.down_proj", "int2g16", "no fast product for 2 bits in groups of 16"),
        ("model.layers.0.mlp.down_proj", "int2g256", "no fast product for 2 bits in groups of 256"),
        ("model.layers.0.mlp.down_proj", "k4g32", "loads the grid int, got k"),
        ("model.embed_tokens", "int2g32", "tables of 4 and 8 bits, got 2"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason(
    llama: RoundedModel, unit: str, choice: str, reason: str
) -> None:
    refusal = RUNTIME.refusal(llama.spec, llama.spec.unit(unit), Choice.parse(choice))
    assert refusal is not None and reason in refusal


def test_the_template_is_built_once(llama: RoundedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = template.template_for(llama)

    def fail(*arguments: object) -> Path:
        raise AssertionError("the builder ran again")

    monkeypatch.setattr(template, "build", fail)
    assert template.template_for(llama).folder == first.folder


def test_labels_name_the_rows_of_a_joined_product() -> None:
    labels = np.array([[1, 0], [1, 1], [2, 0], [1, 2]])
    found = template.read_labels(labels, ["a", "b"], "node")
    assert found == (template.Rows("a", 0, 2), template.Rows("b", 0, 1), template.Rows("a", 2, 3))
    with pytest.raises(ValueError, match="must be one of the model's linears"):
        template.read_labels(np.array([[0.5, 0]]), ["a"], "node")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("length", [1, 9, 64])
def test_packing_round_trips(bits: int, length: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2**bits, (3, length), np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, -(-length * bits // 8))
    assert np.array_equal(unpack(packed, bits, length), codes)


def test_zeros_of_each_row_start_on_a_byte() -> None:
    assert storage.zero_bytes(576, 10, Choice(4, 64)) == 10 * 5
    assert storage.zero_bytes(576, 10, Choice(2, 64)) == 10 * 3
