"""Writes tiny models as GGUF files, as llama.cpp's converter does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from tests.tiny import tiny_tokenizer

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "mixtral": "llama",
    "qwen3_moe": "qwen3moe",
    "phi3": "phi3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}


def metadata_of(config: Any, architecture: str) -> dict[str, Any]:
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = config.rope_parameters
    found = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1)),
        "vocab_size": config.vocab_size,
    }
    if getattr(config, "num_experts_per_tok", None):
        found |= {"expert_count": config.num_local_experts, "expert_used_count": config.num_experts_per_tok}
    if architecture == "qwen3moe":
        found["expert_feed_forward_length"] = config.moe_intermediate_size
    window = getattr(config, "sliding_window", None)
    if window and (architecture != "qwen2" or config.use_sliding_window):
        found["attention.sliding_window"] = window
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            found[name] = float(getattr(config, name))
    return {f"{architecture}.{name}": value for name, value in found.items()}


def tokenizer_metadata() -> dict[str, Any]:
    vocabulary = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
    tokens = [*(token for token, _ in vocabulary), "ab"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in ("<s>", "</s>") else 1 for token in tokens],
        "tokenizer.ggml.merges": ["a b"],  # an array without entries has no type in GGUF
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.padding_token_id": 257,
    }


def tensors_of(model: Any, architecture: str) -> dict[str, np.ndarray[Any, Any]]:
    """The parameters by GGUF's names, in GGUF's layout."""
    config = model.config
    key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(key, config.num_hidden_layers)
    found = {}
    for name, parameter in _apart(model.named_parameters()):
        base, _, suffix = name.rpartition(".")
        theirs = f"{'output' if base == 'lm_head' else names.get_name(base)}.{suffix}"
        values = parameter.detach().float()
        if architecture.startswith("gemma") and theirs.endswith("norm.weight"):
            values = values + 1
        if architecture == "llama" and (".attn_q." in theirs or ".attn_k." in theirs):
            heads = config.num_attention_heads if ".attn_q." in theirs else config.num_key_value_heads
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            values = halves.transpose(1, 2).reshape(values.shape)
        found[theirs] = values.numpy()
    return found


def _apart(parameters: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Experts' gate and up, which transformers has as one, each by itself."""
    for name, values in parameters:
        if name.endswith("experts.gate_up_proj"):
            for part, stack in zip(("gate_proj", "up_proj"), values.chunk(2, 1), strict=True):
                yield f"{name.removesuffix('gate_up_proj')}{part}.weight", stack
        else:
            yield (f"{name}.weight" if values.dim() == 3 else name), values


def write(
    path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]
) -> Path:
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_gguf(
    path: Path, model: Any, metadata: Mapping[str, Any] | None = None, tensors: Mapping[str, Any] | None = None
) -> Path:
    """A model's GGUF; `metadata` and `tensors` are added, or left out where they are None."""
    architecture = ARCHITECTURES[model.config.model_type]
    keys = metadata_of(model.config, architecture) | tokenizer_metadata() | dict(metadata or {})
    held = tensors_of(model, architecture) | dict(tensors or {})
    return write(path, architecture, keys, {name: values for name, values in held.items() if values is not None})


def split(path: Path, model: Any, parts: int) -> list[Path]:
    """A model's GGUF in parts: the metadata in the first, the tensors over all."""
    architecture = ARCHITECTURES[model.config.model_type]
    tensors = tensors_of(model, architecture)
    names, files = list(tensors), []
    for part in range(parts):
        keys = metadata_of(model.config, architecture) | tokenizer_metadata() if part == 0 else {}
        keys |= {"split.no": part, "split.count": parts, "split.tensors.count": len(names)}
        file = path / f"model-{part + 1:05}-of-{parts:05}.gguf"
        files.append(write(file, architecture, keys, {name: tensors[name] for name in names[part::parts]}))
    return files


def same_logits(one: Any, other: Any, tokens: int = 96) -> bool:
    """Within what float32 leaves of norms stored as 1 + w."""
    ids = torch.randint(250, (2, tokens), generator=torch.Generator().manual_seed(0))
    return torch.allclose(one(ids).logits, other(ids).logits, atol=2e-4)
