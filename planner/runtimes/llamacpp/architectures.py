"""The architectures that are written as GGUF files, each compared with what transformers computes.

llama.cpp runs a model by its own code for each architecture, and reads of a file what that code asks for: a window, a
bias or a rotary embedding that it does not ask for is lost without a word. So each member says what its code has, and
`refusal` names whatever else a model has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from supernet.spec import ModelSpec, UnitSpec
from supernet.ties import fused_role

HIDDEN, HEAD = "hidden", "head"  # what a norm is as long as

# Norms by the last parts of their names in transformers; GGUF's name and the length.
_OUTER = {"input_layernorm": ("attn_norm", HIDDEN), "post_attention_layernorm": ("ffn_norm", HIDDEN)}
_HEADS = {"self_attn.q_norm": ("attn_q_norm", HEAD), "self_attn.k_norm": ("attn_k_norm", HEAD)}
_HUNYUAN = {"self_attn.query_layernorm": ("attn_q_norm", HEAD), "self_attn.key_layernorm": ("attn_k_norm", HEAD)}
_AROUND = {
    "input_layernorm": ("attn_norm", HIDDEN),
    "post_attention_layernorm": ("post_attention_norm", HIDDEN),
    "pre_feedforward_layernorm": ("ffn_norm", HIDDEN),
    "post_feedforward_layernorm": ("post_ffw_norm", HIDDEN),
}
GELU = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class Architecture:
    """`name` is GGUF's. `norms` are a layer's, by their names in transformers. `pairs`: heads rotate neighbouring
    values, where transformers rotates halves. `norm_offset` is what llama.cpp's norms have more than transformers'.
    `biases` are the roles of units that may have them. `pattern`: every so manieth layer sees all tokens, the others a
    window; None where no layer may have one. `settings` are numbers of the config by the keys that hold them.
    `experts`: every layer's feed-forward block is a mixture, and the shares of the chosen ones are 1 together."""

    name: str
    norms: dict[str, tuple[str, str]]
    ropes: tuple[str, ...]
    activation: str = "silu"
    pairs: bool = False
    norm_offset: float = 0.0
    biases: tuple[str, ...] = ()
    pattern: int | None = None
    tied_only: bool = False
    settings: tuple[tuple[str, str], ...] = ()
    experts: bool = False


_LLAMA = Architecture("llama", _OUTER, ("default", "linear", "yarn", "llama3"), pairs=True,
                      biases=("qkv", "o", "gate_up", "down"))  # fmt: skip
_GRANITE = (
    ("embedding_multiplier", "embedding_scale"), ("attention_multiplier", "attention.scale"),
    ("residual_multiplier", "residual_scale"), ("logits_scaling", "logit_scale"),
)  # fmt: skip
ARCHITECTURES = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": replace(_LLAMA, biases=(), experts=True),
    "Qwen2ForCausalLM": Architecture("qwen2", _OUTER, ("default", "linear", "yarn"), biases=("qkv",)),
    "Qwen3ForCausalLM": Architecture("qwen3", _OUTER | _HEADS, ("default", "linear", "yarn")),
    "Qwen3MoeForCausalLM": Architecture("qwen3moe", _OUTER | _HEADS, ("default", "linear", "yarn"), experts=True),
    "Phi3ForCausalLM": Architecture("phi3", _OUTER, ("default", "longrope")),
    "GemmaForCausalLM": Architecture("gemma", _OUTER, ("default",), GELU, norm_offset=1.0, tied_only=True),
    "Gemma2ForCausalLM": Architecture(
        "gemma2", _AROUND, ("default",), GELU, norm_offset=1.0, tied_only=True, pattern=2
    ),
    "Gemma3ForCausalLM": Architecture(
        "gemma3", _AROUND | _HEADS, ("default", "linear"), GELU, norm_offset=1.0, tied_only=True, pattern=6
    ),
    "GraniteForCausalLM": Architecture(
        "granite", _OUTER, ("default",), pairs=True, biases=("qkv", "o", "gate_up", "down"), settings=_GRANITE
    ),
    "SmolLM3ForCausalLM": Architecture("smollm3", _OUTER, ("default", "linear", "yarn"), pairs=True),
    "Ernie4_5ForCausalLM": Architecture("ernie4_5", _OUTER, ("default",)),
    "HunYuanDenseV1ForCausalLM": Architecture("hunyuan-dense", _OUTER | _HUNYUAN, ("default",)),
}


def refusal(spec: ModelSpec) -> str | None:
    """Why llama.cpp would compute something else than the model does, or None where it does not."""
    known = ARCHITECTURES.get(spec.architecture)
    if known is None:
        return f"GGUF files are compared with {', '.join(ARCHITECTURES)}, got {spec.architecture}"
    if spec.features:
        return f"llama.cpp's {known.name} has no {spec.features[0]}"
    for kind in spec.ropes:
        if kind not in known.ropes:
            return (
                f"llama.cpp's {known.name} has rotary embeddings of the kinds {', '.join(known.ropes)}, "
                f"got rope type {kind}"
            )
    if spec.activation != known.activation:
        return f"llama.cpp's {known.name} has the activation {known.activation}, got {spec.activation}"
    if known.tied_only and not spec.tied:
        return f"llama.cpp's {known.name} has one table for tokens and head, {spec.name} has two"
    return _windows(spec, known) or _rotation(spec, known) or _biases(spec, known)


def _windows(spec: ModelSpec, known: Architecture) -> str | None:
    for window in spec.windows:
        if window is not None and window < 1:
            return f"a sliding window must let a token see itself, got a window of {window}"
    if known.pattern is None:
        narrow = any(window is not None and window < spec.max_context for window in spec.windows)
        return f"llama.cpp's {known.name} has no sliding window, {spec.name} has one" if narrow else None
    found = tuple(window is not None for window in spec.windows)
    if found != tuple(bool((layer + 1) % known.pattern) for layer in range(spec.num_layers)):
        return (
            f"in llama.cpp's {known.name} every layer but each {known.pattern}th has a sliding window, "
            f"in {spec.name} others do"
        )
    return None


def _rotation(spec: ModelSpec, known: Architecture) -> str | None:
    if spec.rotary_dim % 2 or spec.rotary_dim == 0:
        return f"llama.cpp rotates pairs of a head's values, got {spec.rotary_dim} that rotate"
    if spec.rotary_dim != spec.head_dim and known.name != "phi3":
        return f"llama.cpp's {known.name} rotates whole heads of {spec.head_dim} values, got {spec.rotary_dim}"
    return None


def _biases(spec: ModelSpec, known: Architecture) -> str | None:
    for unit in spec.units:
        if _has_bias(unit) and fused_role(unit.role) not in known.biases:
            return f"llama.cpp's {known.name} has no bias in {unit.name}"
    return None


def _has_bias(unit: UnitSpec) -> bool:
    return any(linear.bias for linear in unit.linears)
