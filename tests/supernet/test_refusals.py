"""What cannot be trained is refused by its config, tokenizer or settings, before a weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from records.errors import InputError
from supernet.loading import describe, load_model
from tests.supernet.folders import config, edit, refused
from tests.tiny import save_tiny, tiny_tokenizer

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "pre-quantized (gptq"),
    "awq": ({"quantization_config": {"quant_method": "awq"}}, "pre-quantized (awq"),
    "bnb": ({"quantization_config": {"load_in_4bit": True}}, "pre-quantized"),
    "fp8": ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "pre-quantized (fp8"),
    "mlx": ({"quantization": {"group_size": 64, "bits": 4}}, "pre-quantized"),
    "compressed": ({"compression_config": {"format": "pack-quantized"}}, "pre-quantized"),
    "odd quantization": ({"quantization_config": [1]}, "pre-quantized"),
    "olmoe": ({"model_type": "olmoe", "num_experts": 8}, "mixture of experts"),
    "olmoe by its class": ({"model_type": "olmoe"}, "mixture of experts"),
    "qwen2-moe": ({"model_type": "qwen2_moe", "num_experts": 60}, "mixture of experts"),
    "deepseek": ({"model_type": "deepseek_v3", "n_routed_experts": 64}, "mixture of experts"),
    "mamba": ({"model_type": "mamba", "num_attention_heads": ...}, "attention"),
    "mamba2": ({"model_type": "mamba2", "num_attention_heads": ...}, "attention"),
    "rwkv": ({"model_type": "rwkv"}, "attention"),
    "falcon-mamba": ({"model_type": "falcon_mamba"}, "attention"),
    "lfm2": ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "attention"),
    "qwen3-next": ({"model_type": "qwen3_next"}, "experts"),
    "bert": ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "encoder"),
    "t5": ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
    "t5 unsaid": ({"model_type": "t5"}, "encoder-decoder"),
    "llava": ({"model_type": "llava", "vision_config": {}}, "images or sound"),
    "clip": ({"model_type": "clip", "architectures": ["CLIPModel"]}, "images or sound"),
    "gpt2": ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "nn.Linear"),
    "unknown": ({"model_type": "no-such-model"}, "transformers does not know"),
    "no type": ({"model_type": ...}, "model_type"),
    "heads": ({"num_attention_heads": 5, "head_dim": ...}, "multiple of num_attention_heads"),
    "kv heads": ({"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
    "odd heads": ({"head_dim": 15}, "head_dim"),
    "a part of a head in words": ({"partial_rotary_factor": "half"}, "partial_rotary_factor"),
    "more than a head": ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 2}}, "partial_rotary_factor"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "negative": ({"vocab_size": -1}, "vocab_size"),
    "text for a size": ({"hidden_size": "64"}, "hidden_size"),
    "a million layers": ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
    "architectures of another kind": ({"architectures": True}, "architectures"),
    "layer types of another kind": ({"layer_types": 3}, "layer_types"),
    "no number of layers": ({"num_hidden_layers": None}, "num_hidden_layers"),
    "eos outside": ({"eos_token_id": 272}, "eos_token_id"),
    "eos of a list outside": ({"eos_token_id": [257, 1000]}, "eos_token_id"),
    "bos negative": ({"bos_token_id": -2}, "bos_token_id"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_cannot_be_trained_is_refused_by_its_config(tmp_path: Path, kind: str) -> None:
    changes, words = CONFIGS[kind]
    config(save_tiny(tmp_path), **changes)
    with pytest.raises(InputError) as raised:
        describe(str(tmp_path))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00", "", '{"model_type": "llama", "rms_norm_eps": Infinity}'])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (save_tiny(tmp_path) / "config.json").write_text(text)
    assert "config of a model" in refused(tmp_path)


# --- tokenizers and settings of generation


def larger_tokenizer(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<more{number}>" for number in range(20)])
    tokenizer.save_pretrained(folder)


def only_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x00")


TOKENIZERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "larger than the embedding": (larger_tokenizer, "the tokenizer is larger"),
    "missing": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer (tokenizer.json)"),
    "sentencepiece alone": (only_sentencepiece, "SentencePiece"),
    "broken": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer"),
    "broken settings": (lambda f: (f / "tokenizer_config.json").write_text("["), "tokenizer_config.json is damaged"),
    "broken generation": (lambda f: (f / "generation_config.json").write_text("{,"), "generation_config.json"),
    "generation of a list": (lambda f: (f / "generation_config.json").write_text("[]"), "generation_config.json"),
    "generation ids outside": (lambda f: edit(f / "generation_config.json", eos_token_id=[1, 999]), "eos_token_id"),
    "generation of text": (lambda f: edit(f / "generation_config.json", temperature="hot"), "temperature"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_or_settings_that_do_not_fit_are_refused(tmp_path: Path, kind: str) -> None:
    change, words = TOKENIZERS[kind]
    change(save_tiny(tmp_path))
    assert words in refused(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_settings_of_generation_are_kept_as_they_are(tmp_path: Path, encoding: str) -> None:
    settings = {"eos_token_id": [257, 3], "temperature": 0.6, "top_p": 0.9, "do_sample": True}
    save_tiny(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(settings), encoding=encoding)
    loaded = load_model(str(tmp_path))
    assert loaded.generation == settings
    assert loaded.model.generation_config.eos_token_id == [257, 3]
    loaded.save_description(tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "generation_config.json").read_text("utf-8")) == settings
