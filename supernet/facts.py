"""What a Hugging Face config says of a model beyond its shapes: windows, rotary embeddings, switches. No torch.

Each follows the model's own code in transformers: an attribute that a config carries and its model never reads is no
fact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ONE_WINDOW = (
    "mistral",
    "phi3",
    "mixtral",
    "qwen3_moe",
)  # every layer has `sliding_window`, whatever `layer_types` says
WINDOW_BY_LAYER = ("qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3")
GATED_BY = ("gemma2", "gemma3_text")  # read `hidden_activation`, all others `hidden_act`
SWITCHES = ("clip_qkv", "qk_layernorm", "use_bidirectional_attention", "mlp_only_layers")
FULL, SLIDING = "full_attention", "sliding_attention"
ONLY_ROPE = ""  # the name of the rotary embedding of a model that has one for all layers


# What the files of a Mixtral call its experts' matrices, and where they lie.
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def stored_name(name: str, architecture: str) -> str:
    """What files of an architecture call a linear, or a tensor of one or of a router, whose experts are linears."""
    if architecture != "MixtralForCausalLM" or ".mlp." not in name:
        return name
    return ".".join(_MIXTRAL.get(part, part) for part in name.split(".")).replace(".mlp.", ".block_sparse_moe.")


def head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def windows(config: Any) -> tuple[int | None, ...]:
    """How many tokens, itself included, a token sees in each layer; empty where all layers see all of them."""
    window, layers = getattr(config, "sliding_window", None), config.num_hidden_layers
    if window is None:
        return ()
    if config.model_type in ONE_WINDOW:
        return (window,) * layers
    if config.model_type in WINDOW_BY_LAYER:
        found = tuple(window if kind == SLIDING else None for kind in config.layer_types)
        return found if any(found) else ()
    return ()


def ropes(config: Any) -> dict[str, Mapping[str, Any]]:
    """The settings of each rotary embedding that a layer uses, by the type of layer, or by ONLY_ROPE."""
    found = getattr(config, "rope_parameters", None) or {}
    if not found:
        return {}
    if isinstance(next(iter(found.values())), Mapping):
        return {kind: settings for kind, settings in found.items() if kind in set(config.layer_types)}
    return {ONLY_ROPE: found} if any(rotates(config)) else {}


def rotates(config: Any) -> tuple[bool, ...]:
    """For each layer, whether its heads rotate with the position; some of SmolLM3's do not."""
    flags = config.no_rope_layers if config.model_type == "smollm3" else [1] * config.num_hidden_layers
    return tuple(bool(flag) for flag in flags)


def rope_kind(settings: Mapping[str, Any]) -> str:
    """The kind's name in transformers; `ntk_alpha` is Hunyuan's, which its configs call dynamic though it is fixed."""
    kind = str(settings.get("rope_type") or settings.get("type") or "default")
    return "ntk_alpha" if kind == "dynamic" and settings.get("alpha") else kind


def rotary_dim(config: Any) -> int:
    """How many of a head's values rotate with the position; Phi rotates a part."""
    used = ropes(config)
    if not used:
        return 0
    part = next(iter(used.values())).get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None)
    return int(head_dim(config) * (part or 1))


def max_context(config: Any) -> int:
    """The tokens up to which the model is one function.

    longrope turns every position otherwise once a text is longer than the original context, also the ones that lie
    in the cache already; within it, it is a fixed table as all other kinds are.
    """
    limits = [config.max_position_embeddings]
    limits += [r["original_max_position_embeddings"] for r in ropes(config).values() if rope_kind(r) == "longrope"]
    return int(min(limits))


def activation(config: Any) -> str:
    name = "hidden_activation" if config.model_type in GATED_BY else "hidden_act"
    return str(getattr(config, name, None) or "unknown")


def features(config: Any) -> tuple[str, ...]:
    """Names of the switches that are on, and those of a mixture's that are not as in other mixtures."""
    found = [name for name in SWITCHES if getattr(config, name, None)]
    if getattr(config, "decoder_sparse_step", 1) != 1:
        found.append("decoder_sparse_step")
    if config.model_type == "qwen3_moe" and not config.norm_topk_prob:
        found.append("norm_topk_prob false")
    return tuple(found)
