"""A model whose matrices stay in their files is the model: the same numbers, and nothing of it in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from records.errors import InputError
from supernet.absent import Absent, absent_in, change, present, streams
from supernet.blocks import decoder_layers, placed
from supernet.exact import in_float32
from supernet.loading import load_model
from supernet.model import hidden_states, logits_of, spec_of_model
from tests.supernet.gguf_files import save_gguf
from tests.tiny import FAMILIES, save_tiny, tiny_model, windows


def both(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    return load_model(str(path), dtype=dtype), load_model(str(path), dtype=dtype, streamed=True)


def matrices(model: Any) -> list[str]:
    return [linear.name for unit in spec_of_model(model, "tiny").units for linear in unit.linears]


@torch.no_grad()
def said(model: Any) -> torch.Tensor:
    return logits_of(model, hidden_states(model, windows(2, 16)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_folder_computes_the_same(family: str, tmp_path: Path) -> None:
    whole, streamed = both(save_tiny(tmp_path / "model", family))
    assert streams(streamed.model)
    assert not streams(whole.model)
    assert torch.equal(said(streamed.model), said(whole.model))
    assert streamed.account == whole.account
    for name in matrices(whole.model):
        weight = streamed.model.get_submodule(name).weight
        assert isinstance(weight, Absent)
        assert weight.untyped_storage().nbytes() <= 4
        assert weight.isnan().all()
        with present(weight):
            assert torch.equal(weight, whole.model.get_submodule(name).weight)


def test_a_streamed_gguf_file_computes_the_same(tmp_path: Path) -> None:
    whole, streamed = both(save_gguf(tmp_path / "model.gguf", tiny_model()))
    assert streams(streamed.model)
    assert torch.equal(said(streamed.model), said(whole.model))
    assert streamed.account == whole.account


def test_narrow_weights_are_widened_as_those_in_memory_are(tmp_path: Path) -> None:
    whole, streamed = both(save_tiny(tmp_path / "model", "qwen2"), torch.bfloat16)
    assert torch.equal(said(streamed.model), said(whole.model))
    found = []
    for model in (whole.model, streamed.model):
        with in_float32(model):
            found.append(said(model))
    assert found[0].dtype == torch.float32
    assert torch.equal(*found)
    assert streamed.model.dtype == torch.bfloat16


def test_a_placed_block_is_read_once_and_goes(tmp_path: Path) -> None:
    _, streamed = both(save_tiny(tmp_path / "model"))
    layer = decoder_layers(streamed.model)[0]
    reads = []
    for weight in absent_in(layer):
        weight.read = lambda read=weight.read: reads.append(1) or read()
    with placed(layer, torch.device("cpu"), torch.bfloat16):
        assert layer.self_attn.q_proj.weight.dtype == torch.bfloat16
        with present(layer):
            pass
    assert len(reads) == 7
    assert layer.self_attn.q_proj.weight.isnan().all()
    assert layer.self_attn.q_proj.weight.dtype == torch.float32


def test_a_change_is_made_whenever_a_weight_is_read(tmp_path: Path) -> None:
    whole, streamed = both(save_tiny(tmp_path / "model"))
    expected, absent = (one.model.get_submodule("model.layers.0.mlp.up_proj").weight for one in (whole, streamed))
    for weight in (expected, absent):
        change(weight, lambda values: values.mul_(3))
    for _ in range(2):
        with present(absent):
            assert torch.equal(absent, expected)


def test_weights_under_other_names_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["other.q_proj.weight"] = tensors.pop("model.layers.0.self_attn.q_proj.weight")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"stores model.layers.0.self_attn.q_proj.weight otherwise than the model"):
        load_model(str(tmp_path / "model"), streamed=True)
