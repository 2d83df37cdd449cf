"""Tiny real models and a small implementation of what an exporter reads of a supernet: round-to-nearest codes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.testing.models import tiny_model
from planner.testing.supernets import Folded, RoundedSupernet, nearest
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec
from supernet.ties import apart, siblings, tied

UNTIED = {"tie_word_embeddings": False}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": None, **UNTIED},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "gemma": {"model_type": "gemma", "head_dim": 32},
    "gemma2": {"model_type": "gemma2", "head_dim": 32, "sliding_window": 100, "query_pre_attn_scalar": 24},
    "gemma3": {
        "model_type": "gemma3_text", "head_dim": 32, "sliding_window": 100,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi": {
        "model_type": "phi", "num_attention_heads": 2, "num_key_value_heads": 2, "partial_rotary_factor": 0.5, **UNTIED
    },
    "phi3": {"model_type": "phi3", **UNTIED},
    "granite": {"model_type": "granite", **MULTIPLIERS},
    "nemotron": {"model_type": "nemotron", "num_attention_heads": 2, "partial_rotary_factor": 0.5, **UNTIED},
    "olmo": {"model_type": "olmo"},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0]},
    "ernie": {"model_type": "ernie4_5", "head_dim": 32},
    "hunyuan": {"model_type": "hunyuan_v1_dense", "head_dim": 32},
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": False}
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", EXPERTS | UNTIED),
    "qwen3moe": ("qwen3_moe", EXPERTS | {"head_dim": 32, "moe_intermediate_size": 128, "norm_topk_prob": True}),
}
"""Mixtures of experts, which some runtimes hold."""
FAMILIES |= {family: {"model_type": family} for family, _ in MIXTURES.values()}


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, "rope_type": kind, **settings}}


def long_rope(values: int, **more: Any) -> dict[str, Any]:
    factors = {"short_factor": [1.2] * (values // 2), "long_factor": [4.0] * (values // 2)}
    return rope("longrope", original_max_position_embeddings=256, **factors, **more)


WINDOW = {"use_sliding_window": True, "sliding_window": 100, "layer_types": ["sliding_attention", "full_attention"]}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES if family not in [mixture for mixture, _ in MIXTURES.values()]},
    "llama with biases, heads of 32": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32, **UNTIED}),
    "llama without groups, linear": ("llama", {"num_key_value_heads": 4, **rope("linear", factor=4.0)}),
    "llama, dynamic": ("llama", rope("dynamic", factor=4.0)),
    "llama, yarn": ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "llama, llama3": ("llama", rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                    original_max_position_embeddings=128)),
    "mistral with a window": ("mistral", {"sliding_window": 100}),
    "qwen2 with windows by depth": ("qwen2", {"use_sliding_window": True, "sliding_window": 100,
                                              "max_window_layers": 1}),
    "qwen2, yarn": ("qwen2", rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "qwen3 with a window by layer": ("qwen3", WINDOW),
    "gemma3, linear": ("gemma3", {"rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "phi3 with a window": ("phi3", {"sliding_window": 100}),
    "phi3, longrope": ("phi3", {"original_max_position_embeddings": 256, **long_rope(16)}),
    "phi-4-mini": ("phi3", {"original_max_position_embeddings": 256, "num_attention_heads": 2,
                            "tie_word_embeddings": True, **long_rope(16, partial_rotary_factor=0.5)}),
    "granite with biases": ("granite", {"attention_bias": True, "mlp_bias": True, **UNTIED}),
    "smollm3 with a window": ("smollm3", WINDOW),
    "hunyuan, alpha": ("hunyuan", rope("dynamic", alpha=50.0, factor=1.0)),
}  # fmt: skip


def round_to_nearest(weight: NDArray[np.float32], choice: Choice) -> Folded:
    if choice.format.block > 1:
        return nearest(weight, choice)  # the grid's own numbers are no matter of a few lines
    rows, columns = weight.shape
    top = 2**choice.bits - 1
    grouped = weight.reshape(rows, columns // choice.group_size, choice.group_size)
    if choice.format.symmetric:
        return _symmetric(grouped, choice)
    low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
    scale = np.maximum((high - low) / top, 1e-8).astype(np.float32)
    zero = np.clip(np.round(-low / scale), 0, top)
    codes = np.clip(np.round(grouped / scale[..., None]) + zero[..., None], 0, top)
    return Folded(codes.astype(np.uint8).reshape(rows, columns), scale, zero.astype(np.uint8))


def _symmetric(grouped: NDArray[np.float32], choice: Choice) -> Folded:
    """The largest weight of a group takes its last code, so that scales have either sign."""
    half = 2 ** (choice.bits - 1)
    extreme = np.take_along_axis(grouped, np.abs(grouped).argmax(-1, keepdims=True), -1)[..., 0]
    scale = np.where(extreme == 0, 1e-8, -extreme / half).astype(np.float32)
    codes = np.clip(np.round(grouped / scale[..., None]) + half, 0, 2 * half - 1)
    zero = np.full(scale.shape, half, np.uint8)
    return Folded(codes.astype(np.uint8).reshape(len(grouped), -1), scale, zero)


class RoundedModel(RoundedSupernet):
    """Rounded by a rule of its own, which no code that is tested has a part in: with siblings tied, so that a subnet of
    it is one for every runtime, or `untied`."""

    def __init__(self, folder: Path, untied: bool = False) -> None:
        super().__init__(folder)
        if not untied:
            self.spec = tied(self.spec, siblings(self.spec))

    def folded(self, linear: str, choice: Choice) -> Folded:
        return round_to_nearest(self.weights[linear + ".weight"], choice)

    def dequantized(self, subnet: Subnet) -> Any:
        """The plain model whose weights are the subnet's."""
        return super().subnet_model(subnet)


def save_tiny(family: str, folder: Path, **settings: Any) -> Path:
    """A random model of `family`, as `planner.testing.models.tiny_model` makes them."""
    return tiny_model(folder, **{**FAMILIES[family], **settings})


def mixed(spec: ModelSpec, bits: Mapping[int, int] | tuple[int, ...] = (2, 4, 8), group_size: int = 32) -> Subnet:
    """A subnet that cycles through `bits` over the linears, siblings alike, with the tables at 8 and then 4 bits."""
    cycle = list(bits)
    tables, whole = iter((8, 4)), tied(spec, siblings(spec))
    subnet = Subnet.of(
        {
            unit.name: Choice(next(tables) if unit.is_table else cycle[i % len(cycle)], group_size)
            for i, unit in enumerate(whole.units)
        }
    )
    return apart(subnet, whole, spec)
