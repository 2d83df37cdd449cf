"""What a model is made of, for every architecture, and what is said of one that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from supernet.model import check_head, hidden_states, load_model, logits_of, spec_of, spec_of_model
from supernet.spec import ModelSpec
from tests.tiny import FAMILIES, save_tiny, tiny_config, tiny_model

LLAMA_LIKE = ["qkv", "o", "gate_up", "down"]
ROLES = {"phi": ["qkv", "dense", "fc1", "fc2"], "phi3": ["o", "qkv_proj", "gate_up_proj", "down"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_alone_tells_the_whole_spec(family: str) -> None:
    model = tiny_model(family)
    spec = spec_of_model(model, family)
    assert spec_of(tiny_config(family), family) == spec
    assert ModelSpec.from_json(spec.to_json()) == spec
    counted = spec.float_parameters + sum(unit.weights for unit in spec.units)
    assert counted == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_units_are_what_runtimes_fuse(family: str) -> None:
    spec = spec_of_model(tiny_model(family), family)
    tables = ["embedding"] if spec.tied else ["embedding", "head"]
    assert [unit.role for unit in spec.units if unit.is_table] == tables
    for layer in range(2):
        roles = [unit.role for unit in spec.units if unit.layer == layer]
        assert sorted(roles) == sorted(ROLES.get(family, LLAMA_LIKE))
    assert spec.num_kv_heads == (4 if family == "phi" else 2)
    assert spec.head_dim == 16
    assert any(lin.bias for unit in spec.units for lin in unit.linears) == (family in ("qwen2", "phi"))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model(family: str) -> None:
    model = tiny_model(family)
    check_head(model)
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(logits_of(model, hidden_states(model, ids)), model(ids).logits)


def test_a_saved_model_loads_with_its_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = load_model(str(save_tiny(tmp_path)))
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())
    assert tokenizer.decode(tokenizer("fox, dog")["input_ids"]) == "fox, dog"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("./nowhere", "no such model folder: ./nowhere; give a Hugging Face folder"),
        ("./nowhere.gguf", "no such model file: ./nowhere.gguf; give the path of a .gguf file"),
        ("somebody/some-model", "neither a local path nor reachable on the hub; give the folder of a downloaded copy"),
    ],
)
def test_a_missing_model_is_one_clear_line(source: str, error: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        load_model(source)
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a model folder needs a config.json"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("damage", ["weights", "config", "missing"])
def test_a_corrupt_model_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    save_tiny(tmp_path)
    if damage == "weights":
        (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    elif damage == "config":
        (tmp_path / "config.json").write_text("{")
    else:
        (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be loaded") as raised:
        load_model(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(tmp_path))
