"""Hugging Face folders of tiny models, and what may be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from records.errors import InputError
from supernet.loading import load_model
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

WEIGHTS = "model.safetensors"


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; `...` removes one."""
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def config(folder: Path, **changes: Any) -> None:
    edit(folder / "config.json", **changes)


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a folder's one file."""
    held = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(held)
    save_file(held, folder / WEIGHTS, metadata={"format": "pt"})


def save(folder: Path, model: Any) -> None:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def sharded(folder: Path) -> list[Path]:
    """The folder's weights as several files with an index."""
    model = tiny_model()
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    return sorted(folder.glob("model-0*.safetensors"))


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as raised:
        load_model(str(folder))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def with_code(folder: Path) -> Path:
    save_tiny(folder)
    (folder / "configuration_my.py").write_text(
        "from transformers import LlamaConfig\nclass MyConfig(LlamaConfig):\n    model_type = 'mytiny'\n"
    )
    (folder / "parts_my.py").write_text("SCALE = 1.0\n")
    (folder / "modeling_my.py").write_text(
        "from transformers import LlamaForCausalLM\n"
        "from .configuration_my import MyConfig\nfrom .parts_my import SCALE\n"
        "class MyForCausalLM(LlamaForCausalLM):\n    config_class = MyConfig\n"
    )
    code = {"AutoConfig": "configuration_my.MyConfig", "AutoModelForCausalLM": "modeling_my.MyForCausalLM"}
    config(folder, model_type="mytiny", architectures=["MyForCausalLM"], auto_map=code)
    return folder
