"""A model that is kept in bfloat16: measured in float32, made into a supernet, and left as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from supernet.create import create
from supernet.exact import in_float32
from supernet.model import hidden_states, logits_of
from supernet.recipe import Recipe
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer, windows


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_its_float32_copy_does(family: str) -> None:
    narrow, wide = tiny_model(family), tiny_model(family)
    for parameter in narrow.parameters():
        parameter.data = parameter.data.bfloat16()  # as a file is loaded: buffers are as they are made
    wide.load_state_dict(narrow.state_dict())
    before = {name: value.clone() for name, value in narrow.state_dict().items()}
    with torch.no_grad(), in_float32(narrow):
        found = logits_of(narrow, hidden_states(narrow, windows()))
        with pytest.raises(IndexError):
            hidden_states(narrow, torch.tensor([[10**6]]))
    with torch.no_grad():
        expected = logits_of(wide, hidden_states(wide, windows()))
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in narrow.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_a_supernet_of_a_bfloat16_folder(family: str, data: str, tmp_path: Path) -> None:
    tiny_model(family).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert "bfloat16" in json.loads((tmp_path / "model" / "config.json").read_text())["dtype"]
    recipe = Recipe(bits=(2, 4, 8), group_size=16, steps=4, batch=2, window_tokens=16, data=data, quantizer="gptq")
    info = create(str(tmp_path / "model"), tmp_path / "out", recipe).info
    assert info["lost"] == {}
    assert info["held_out"]["end"]["8"] < 0.02
