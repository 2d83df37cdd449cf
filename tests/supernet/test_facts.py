"""What a config says of a model, as the model's own code in transformers reads it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from supernet.model import spec_of
from supernet.spec import ModelSpec

SHAPE = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip


def spec(kind: str, **changes: Any) -> ModelSpec:
    return spec_of(AutoConfig.for_model(kind, **{**SHAPE, **changes}), kind)


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, "rope_type": kind, **settings}}


@pytest.mark.parametrize(
    ("kind", "changes", "windows"),
    [
        ("mistral", {"sliding_window": 100}, (100, 100)),
        ("mistral", {"sliding_window": None}, ()),
        ("phi3", {"sliding_window": 100, "pad_token_id": 0}, (100, 100)),
        ("qwen2", {"sliding_window": 100}, ()),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1}, (None, 100)),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["sliding_attention"] * 2}, (9, 9)),
        ("gemma2", {"sliding_window": 100}, (100, None)),
        ("llama", {"sliding_window": 100}, ()),
    ],
)
def test_windows_are_those_that_the_model_applies(kind: str, changes: dict[str, Any], windows: tuple[int, ...]) -> None:
    assert spec(kind, **changes).windows == windows


def test_each_kind_of_layer_has_its_rotary_embedding() -> None:
    found = spec("gemma3_text", layer_types=["sliding_attention", "full_attention"], head_dim=32)
    assert found.ropes == ("default", "default") and found.rotary_dim == 32


def test_a_long_rotary_embedding_ends_the_context_where_it_would_turn_every_position_anew() -> None:
    settings = rope("longrope", short_factor=[1.0] * 8, long_factor=[4.0] * 8, original_max_position_embeddings=128)
    found = spec("phi3", original_max_position_embeddings=128, pad_token_id=0, **settings)
    assert found.ropes == ("longrope",) and found.max_context == 128
    assert spec("llama", **rope("linear", factor=4.0)).max_context == 512


def test_switches_and_activations_are_named() -> None:
    assert spec("phi", qk_layernorm=True, num_key_value_heads=4).features == ("qk_layernorm",)
    assert spec("olmo", clip_qkv=0.5).features == ("clip_qkv",)
    assert spec("gemma2").activation == "gelu_pytorch_tanh" and spec("llama", hidden_act="gelu").activation == "gelu"


def test_facts_survive_the_round_trip() -> None:
    found = spec("gemma2", sliding_window=100)
    assert ModelSpec.from_json(found.to_json()) == found
