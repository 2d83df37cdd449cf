"""Every choice that loads, what is refused, and the graphs that packages are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from planner.runtimes.onnxruntime import fresh, graphs, standin, storage, template
from planner.runtimes.onnxruntime.export import write_model
from planner.runtimes.onnxruntime.holding import GRIDS
from planner.runtimes.onnxruntime.packing import pack, unpack
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from records.child import run_child
from supernet.model import spec_of_model
from supernet.space import Choice, Subnet
from tests.planner.runtime_fixtures import RoundedModel, save_tiny

CONTEXT = 96
RUNTIME = OnnxRuntime()


def divergence(ours: np.ndarray, theirs: np.ndarray) -> float:
    """KL per token in nats."""
    ours, theirs = (torch.from_numpy(np.asarray(x)).double().log_softmax(-1) for x in (ours, theirs))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> RoundedModel:
    return RoundedModel(save_tiny("llama", tmp_path_factory.mktemp("llama") / "model", hidden_size=256))


@pytest.mark.parametrize("group_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("grid", GRIDS)
def test_every_loadable_choice_loads(
    llama: RoundedModel, tmp_path: Path, grid: str, bits: int, group_size: int
) -> None:
    choice, table = Choice(bits, group_size, grid), Choice(max(bits, 4), group_size, grid)
    spec = llama.spec
    linear = next(unit for unit in spec.units if not unit.is_table)
    if RUNTIME.holding(spec).unit_refusal(linear, choice):
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
        ("model.layers.0.mlp.down_proj", "k4g32", "loads the grids int and sym, got k"),
        ("model.embed_tokens", "int2g32", "tables of 4 and 8 bits, got 2"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason(
    llama: RoundedModel, unit: str, choice: str, reason: str
) -> None:
    refusal = RUNTIME.holding(llama.spec).unit_refusal(llama.spec.unit(unit), Choice.parse(choice))
    assert refusal is not None and reason in refusal


def config_of(files: RoundedModel) -> Any:
    return files.model.config


def test_a_graph_is_built_once(llama: RoundedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = graphs.template_for(llama.spec, config_of(llama))

    def fail(*arguments: object) -> Path:
        raise AssertionError("the builder ran again")

    monkeypatch.setattr(graphs, "build", fail)
    assert graphs.template_for(llama.spec, config_of(llama)) == first


def test_graphs_of_the_cache_are_read_only_as_they_were_written(llama: RoundedModel, tmp_path: Path) -> None:
    graphs.write(graphs.template_for(llama.spec, config_of(llama)), tmp_path)
    assert graphs.read(tmp_path) is not None
    graph = tmp_path / graphs.GRAPH
    graph.write_bytes(graph.read_bytes() + b"\0")
    assert graphs.read(tmp_path) is None
    (tmp_path / graphs.TEMPLATE).write_text("[]")
    assert graphs.read(tmp_path) is None


def test_a_cache_that_cannot_be_written_is_done_without(
    llama: RoundedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = graphs.template_for(llama.spec, config_of(llama))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BITFLEET_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(graphs, "build", lambda *arguments: made)
    assert graphs.template_for(llama.spec, config_of(llama)) == made


def test_the_builder_imports_nothing_of_the_current_folder(
    llama: RoundedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "onnx", "transformers", "onnxruntime_genai"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('code of the current folder ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(template, "run_child", run_child)  # a process of its own, as outside the tests
    (tmp_path / "scratch").mkdir()
    built = template.build(llama.spec, config_of(llama), tmp_path / "scratch")
    assert set(built.weights) == set(graphs.template_for(llama.spec, config_of(llama)).weights)


def test_what_the_builder_is_shown_does_not_grow_with_the_width(tmp_path: Path) -> None:
    """Two blocks as wide as Llama-2-7B's: 830 MB of weights in bfloat16, 9 of labels."""
    config = AutoConfig.for_model(
        "llama", hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_hidden_layers=2,
        vocab_size=32000, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        spec = spec_of_model(AutoModelForCausalLM.from_config(config), "wide")
    made = standin.write(spec, config, tmp_path / "labelled")
    assert (tmp_path / "labelled" / "model.safetensors").stat().st_size < 9e6
    assert made.sizes["model.layers.1.self_attn.o_proj"] == (64, 4096)


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
