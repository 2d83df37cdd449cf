"""Tiny real models, made on the spot: every architecture the project names, with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from supernet.experts import unstacked

COMMON: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
    "tie_word_embeddings": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"tie_word_embeddings": False, "sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16, "hidden_activation": "gelu_pytorch_tanh"},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "hidden_activation": "gelu_pytorch_tanh"},
    "phi": {"tie_word_embeddings": False, "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "phi3": {"tie_word_embeddings": False},
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"tie_word_embeddings": False, **EXPERTS},
    "qwen3_moe": {"head_dim": 16, "moe_intermediate_size": 64, "norm_topk_prob": True, **EXPERTS},
}
TEXT = "the quick brown fox jumps over the lazy dog; " * 8 + "pack my box with five dozen liquor jugs. " * 8


def tiny_config(family: str = "llama", **changes: Any) -> Any:
    return AutoConfig.for_model(family, **{**COMMON, **{**FAMILIES, **MIXTURES}[family], **changes})


def tiny_model(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """Random weights, wide enough apart that quantizing them is felt. Experts are linears, as where a model is read."""
    return unstacked(_written(family, seed, **changes))


def _written(family: str, seed: int, **changes: Any) -> Any:
    """The same as transformers has it, and writes it."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.1)
        elif parameter.dim() >= 2:
            parameter.mul_(4)
    return model


def tiny_tokenizer(single: str | None = None, template: str | None = None) -> PreTrainedTokenizerFast:
    """A token for every byte. `single` is what it makes of a text, such as "<s> $A </s>", `template` that of chats."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)} | {"<s>": 256, "</s>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if single is not None:
        special = [("<s>", 256), ("</s>", 257)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.chat_template = template
    return made


WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}  # rows that llama.cpp's K types have


def save_tiny(folder: Path, family: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """A Hugging Face folder."""
    _written(family, seed, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def windows(count: int = 8, tokens: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (count, tokens), generator=torch.Generator().manual_seed(seed))
