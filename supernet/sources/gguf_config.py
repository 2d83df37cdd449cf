"""A model's Hugging Face config from the metadata of its GGUF file.

Every `ARCH.*` key is either read here or makes the file be refused: what is dropped in silence is another model. The
rules are those by which llama.cpp runs the file (src/llama-model.cpp), not the defaults of a config class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from records.errors import InputError
from supernet.refusals import EXPERTS as REFUSED_EXPERTS
from supernet.sources.gguf_file import GGUF
from supernet.sources.gguf_rope import rope_parameters

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Keys that say nothing of how the model computes.
HARMLESS = ("vocab_size", "rope.scaling.finetuned")
EXPERTS = ("_exps.", "_exps_", ".ffn_gate_inp", "_shexp.", ".exp_probs_b")
MIXTURES = ("llama", "qwen3moe")  # of which files of experts are read; a llama with experts is a Mixtral
BASE = 10000.0  # llama.cpp's rope base where a file names none


class Keys:
    """The `ARCH.*` metadata of a file; remembers what was asked for."""

    def __init__(self, gguf: GGUF) -> None:
        self.architecture = str(gguf.metadata["general.architecture"])
        prefix = f"{self.architecture}."
        self.values = {key[len(prefix) :]: value for key, value in gguf.metadata.items() if key.startswith(prefix)}
        self.asked: set[str] = set()
        self.path = gguf.files[0]

    def take(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return self.values.get(key, default)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.take(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # one for each layer
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise InputError(
                f"{self.path} must say {self.architecture}.{key} as one positive number, it says {str(value)[:60]}; "
                "give the model's Hugging Face folder"
            )
        return value

    def optional(self, key: str) -> float | None:
        """A positive number, or None where it is not there or is 0."""
        return self.number(key) if self.take(key) else None

    def count(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value != int(value):
            raise InputError(
                f"{self.path} must say {self.architecture}.{key} as a whole number, it says {value}; "
                "give the model's Hugging Face folder"
            )
        return int(value)

    def refuse_left(self) -> None:
        """InputError naming what nobody asked for."""
        left = sorted(key for key in self.values.keys() - self.asked if key not in HARMLESS)
        left = [key for key in left if self.values[key] not in (0, False)]
        if left:
            named = ", ".join(f"{self.architecture}.{key}" for key in left[:4])
            raise InputError(
                f"{self.path} sets {named}, which bitfleet cannot read; give the model's Hugging Face folder"
            )


def config_of(gguf: GGUF) -> dict[str, Any]:
    """The arguments of the model's config class, `model_type` among them.

    InputError where the architecture is not one that is read here, or where it sets what cannot be read exactly.
    """
    keys = Keys(gguf)
    experts = keys.take("expert_count", 0) or any(part in name for name in gguf.tensors for part in EXPERTS)
    if experts and keys.architecture not in MIXTURES:
        raise InputError(f"{keys.path} is {REFUSED_EXPERTS} (its architecture is {keys.architecture})")
    if gguf.metadata.get("general.type", "model") != "model":
        raise InputError(f"{keys.path} is no model but an {gguf.metadata['general.type']}; give the model itself")
    if keys.architecture not in ARCHITECTURES:
        raise InputError(
            f"{keys.path} is of the architecture {keys.architecture}; GGUF files of {', '.join(ARCHITECTURES)} are "
            "read; give the model's Hugging Face folder"
        )
    if not keys.take("attention.causal", True):
        raise InputError(f"{keys.path} is an encoder, which bitfleet cannot train; give a decoder")
    shared = _shared(keys, gguf)
    special = ARCHITECTURES[keys.architecture](keys, gguf, shared)
    scale = keys.optional("attention.scale")
    query = special.get("query_pre_attn_scalar", shared["head_dim"])
    if scale and not math.isclose(scale, query**-0.5, rel_tol=1e-4):
        keys.asked.remove("attention.scale")
    keys.refuse_left()
    return shared | special | _tokens(gguf)


def _shared(keys: Keys, gguf: GGUF) -> dict[str, Any]:
    table = gguf.tensors.get("token_embd.weight")
    if table is None:
        raise InputError(f"{keys.path} has no token_embd.weight; give the model's first part, or all of its parts")
    hidden, heads = keys.count("embedding_length"), keys.count("attention.head_count")
    head_dim = keys.count("attention.key_length", hidden // heads)
    if keys.count("attention.value_length", head_dim) != head_dim:
        raise InputError(f"{keys.path} has values of another width than its keys; give the model's Hugging Face folder")
    rotary = keys.count("rope.dimension_count", head_dim)
    return {
        "model_type": keys.architecture,
        "max_position_embeddings": keys.count("context_length"),
        "num_hidden_layers": keys.count("block_count"),
        "intermediate_size": keys.count("feed_forward_length", keys.values.get("expert_feed_forward_length")),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "vocab_size": table.shape[0],
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "rope_parameters": rope_parameters(keys, gguf, keys.number("rope.freq_base", BASE), head_dim, rotary),
        **({} if rotary == head_dim else {"partial_rotary_factor": rotary / head_dim}),
    }


def _window(keys: Keys) -> int | None:
    """Tokens of the sliding window; None where there is none."""
    return keys.count("attention.sliding_window") if keys.take("attention.sliding_window") else None


def _whole_rotary(keys: Keys, shared: Mapping[str, Any]) -> None:
    if "partial_rotary_factor" in shared:
        raise InputError(
            f"{keys.path} rotates a part of its heads, which is not read for {keys.architecture}; "
            "give the model's Hugging Face folder"
        )


def _llama(keys: Keys, gguf: GGUF, shared: Mapping[str, Any]) -> dict[str, Any]:
    _whole_rotary(keys, shared)
    window = _window(keys)
    if keys.take("expert_count"):
        return {"model_type": "mixtral", "sliding_window": window} | _experts(keys)
    if window is not None:  # a llama with a window is what transformers calls a mistral
        return {"model_type": "mistral", "sliding_window": window}
    biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
    return {name: True for name, tensor in biases.items() if tensor in gguf.tensors}


def _experts(keys: Keys) -> dict[str, Any]:
    keys.take("expert_feed_forward_length")
    return {"num_local_experts": keys.count("expert_count"), "num_experts_per_tok": keys.count("expert_used_count")}


def _qwen3moe(keys: Keys, gguf: GGUF, shared: Mapping[str, Any]) -> dict[str, Any]:
    """llama.cpp makes the shares of the chosen experts 1 together, and has experts in every layer."""
    _whole_rotary(keys, shared)
    width = keys.count("expert_feed_forward_length", keys.values.get("feed_forward_length"))
    window = _window(keys)
    return _experts(keys) | {
        "model_type": "qwen3_moe", "moe_intermediate_size": width, "norm_topk_prob": True,
        "use_sliding_window": window is not None, "sliding_window": window,
    }  # fmt: skip


def _qwen(keys: Keys, gguf: GGUF, shared: Mapping[str, Any]) -> dict[str, Any]:
    _whole_rotary(keys, shared)
    window = _window(keys)
    bias = {"attention_bias": True} if "blk.0.attn_q.bias" in gguf.tensors and keys.architecture == "qwen3" else {}
    if window is None:
        return bias
    return bias | {"sliding_window": window, "use_sliding_window": True, "max_window_layers": 0}


def _phi3(keys: Keys, gguf: GGUF, shared: Mapping[str, Any]) -> dict[str, Any]:
    original = shared["rope_parameters"].get("original_max_position_embeddings")
    return {
        "sliding_window": _window(keys),
        "original_max_position_embeddings": original or shared["max_position_embeddings"],
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    }


def _gemma(keys: Keys, gguf: GGUF, shared: Mapping[str, Any]) -> dict[str, Any]:
    _whole_rotary(keys, shared)
    return {}


def _gemma2(keys: Keys, gguf: GGUF, shared: Mapping[str, Any]) -> dict[str, Any]:
    _whole_rotary(keys, shared)
    return {
        "sliding_window": keys.count("attention.sliding_window", 4096),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _query_scalar(shared, largest=46),
    }


def _gemma3(keys: Keys, gguf: GGUF, shared: Mapping[str, Any]) -> dict[str, Any]:
    _whole_rotary(keys, shared)
    pattern = keys.take("attention.sliding_window_pattern", 6)  # a number, or for each layer whether it has a window
    if pattern not in (6, [bool((layer + 1) % 6) for layer in range(shared["num_hidden_layers"])]):
        keys.asked.remove("attention.sliding_window_pattern")
    local = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", BASE)}
    return {
        "model_type": "gemma3_text",
        "sliding_window": keys.count("attention.sliding_window"),
        "rope_parameters": {"full_attention": shared["rope_parameters"], "sliding_attention": local},
        "final_logit_softcapping": keys.optional("final_logit_softcapping"),
        "query_pre_attn_scalar": _query_scalar(shared, largest=62),
    }


def _query_scalar(shared: Mapping[str, Any], largest: int) -> int:
    """What Gemma's queries are scaled by: the width of a head, but for the model of 27B parameters."""
    if shared["num_hidden_layers"] == largest:
        return int(shared["hidden_size"] // shared["num_attention_heads"])
    return int(shared["head_dim"])


def _tokens(gguf: GGUF) -> dict[str, Any]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding", "unk_token_id": "unknown"}
    found = {name: gguf.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {name: value for name, value in found.items() if value is not None or name != "unk_token_id"}


Special = Callable[[Keys, GGUF, Mapping[str, Any]], dict[str, Any]]
ARCHITECTURES: dict[str, Special] = {
    "llama": _llama,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "qwen3moe": _qwen3moe,
    "phi3": _phi3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}
