"""What a GGUF file says of a model, from its config and tokenizer: no weights, no torch, no transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.runtimes.llamacpp import vocabulary
from planner.runtimes.llamacpp.architectures import ARCHITECTURES
from planner.runtimes.llamacpp.header import FLOAT32, STRING, UINT32, Entry, head
from planner.runtimes.llamacpp.tensors import tensors_of
from records.errors import InputError
from records.reading import read_foreign
from supernet.spec import EXPERT_ROLES, MAKERS, ModelSpec

MIXED = 0  # general.file_type means little where types are mixed; what is asked of it is that it is there
QUANTIZATION_VERSION = 2  # of ggml's block layouts
CONFIG = "config.json"
UNROTATED = 4
LARGEST_QUERY = {"gemma2": 46, "gemma3": 62}  # layers of the models whose queries llama.cpp scales otherwise


def entries(spec: ModelSpec, model_dir: Path) -> list[Entry]:
    """The whole metadata. InputError where the config says what no key does, or the tokenizer cannot be told."""
    config = read_config(model_dir)
    known = ARCHITECTURES[spec.architecture]
    numbers = {**_shapes(spec), **_special(spec, config, model_dir / CONFIG)}
    rope, texts = _rope(spec, config, model_dir / CONFIG)
    numbers |= rope
    spoken = vocabulary.entries(model_dir, spec.vocab_size)
    return [
        Entry("general.architecture", STRING, known.name),
        Entry("general.type", STRING, "model"),
        Entry("general.name", STRING, vocabulary.called(spec.name, model_dir)),
        Entry("general.file_type", UINT32, MIXED),
        Entry("general.quantization_version", UINT32, QUANTIZATION_VERSION),
        *(
            Entry(f"{known.name}.{key}", FLOAT32 if isinstance(value, float) else UINT32, value)
            for key, value in numbers.items()
        ),
        *(Entry(f"{known.name}.{key}", STRING, text) for key, text in texts.items()),
        *spoken,
    ]


def read_config(model_dir: Path) -> dict[str, Any]:
    return read_foreign(model_dir / CONFIG)


def head_bytes(spec: ModelSpec, model_dir: Path) -> int:
    """Bytes before the first tensor, the same for every subnet. A vocabulary takes a third of a second to write, and
    one plan asks for every workload that it compares: it is written once, until a file of the folder changes."""
    stats = [(path.name, path.stat()) for path in sorted(model_dir.glob("*"))]
    return _head_bytes(spec, model_dir, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


@lru_cache(maxsize=16)
def _head_bytes(spec: ModelSpec, model_dir: Path, stamps: tuple[tuple[str, int, int], ...]) -> int:
    return len(head(entries(spec, model_dir), [tensor.stored(None) for tensor in tensors_of(spec)]))


def _shapes(spec: ModelSpec) -> dict[str, int | float]:
    found: dict[str, int | float] = {
        "block_count": spec.num_layers,
        "embedding_length": spec.hidden_size,
        "feed_forward_length": _feed_forward(spec),
        "attention.head_count": spec.num_heads,
        "attention.head_count_kv": spec.num_kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "rope.dimension_count": spec.rotary_dim,
        "vocab_size": spec.vocab_size,
    }
    mixture = next((unit for unit in spec.units if unit.chosen is not None), None)
    if mixture is not None:
        found |= {"expert_count": spec.experts, "expert_used_count": mixture.chosen or 0}
        found |= {"expert_feed_forward_length": _feed_forward(spec)}
    return found


def _feed_forward(spec: ModelSpec) -> int:
    """The channels of a feed-forward block, or of an expert's."""
    makers = [unit for unit in spec.units if unit.role in (*MAKERS, EXPERT_ROLES["up_proj"])]
    channels = makers[0].channels
    return makers[0].linears[0].out_features if channels is None else channels.count


def _special(spec: ModelSpec, config: Mapping[str, Any], path: Path) -> dict[str, int | float]:
    known = ARCHITECTURES[spec.architecture]
    found: dict[str, int | float] = {
        "context_length": _whole(config, "max_position_embeddings", path),
        "attention.layer_norm_rms_epsilon": _number(config, "rms_norm_eps", path),
    }
    found |= {key: _number(config, name, path) for name, key in known.settings}
    if known.name == "smollm3":
        _check_unrotated(spec, config, path)
    if known.pattern is not None:
        found["attention.sliding_window"] = next(window for window in spec.windows if window is not None)
    for key, name in (("attn_logit_softcapping",) * 2, ("final_logit_softcapping",) * 2):
        if known.name in LARGEST_QUERY and config.get(name):
            found[key] = _number(config, name, path)
    if known.name == "gemma3" and config.get("attn_logit_softcapping"):
        raise InputError(f"llama.cpp's gemma3 has no attn_logit_softcapping, {path} sets one")
    if known.name in LARGEST_QUERY:
        _check_query(spec, config, path)
    return found


def _check_query(spec: ModelSpec, config: Mapping[str, Any], path: Path) -> None:
    """llama.cpp knows what queries are scaled by from the count of layers, and reads no key."""
    known = ARCHITECTURES[spec.architecture]
    largest = spec.num_layers == LARGEST_QUERY[known.name]
    wanted = spec.hidden_size // spec.num_heads if largest else spec.head_dim
    if config.get("query_pre_attn_scalar", wanted) != wanted:
        raise InputError(
            f"llama.cpp's {known.name} scales queries of {spec.num_layers} layers by {wanted}, "
            f"query_pre_attn_scalar in {path} is {config['query_pre_attn_scalar']!r:.40}"
        )


def _check_unrotated(spec: ModelSpec, config: Mapping[str, Any], path: Path) -> None:
    """llama.cpp does not rotate each fourth layer, and reads no key."""
    wanted = [int((layer + 1) % UNROTATED != 0) for layer in range(spec.num_layers)]
    if config.get("no_rope_layers", wanted) != wanted:
        raise InputError(
            f"llama.cpp's smollm3 rotates all layers but each {UNROTATED}th, no_rope_layers in {path} says otherwise"
        )


def _rope(
    spec: ModelSpec, config: Mapping[str, Any], path: Path
) -> tuple[dict[str, int | float], dict[str, str]]:  # numbers, texts
    rope = settings_of(config)
    found: dict[str, int | float] = {"rope.freq_base": _number(rope, "rope_theta", path)}
    local = _local(config)
    if local is not None:
        found["rope.freq_base_swa"] = _number(local, "rope_theta", path)
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    if kind == "linear":
        return found | {"rope.scaling.factor": _number(rope, "factor", path)}, {"rope.scaling.type": "linear"}
    if kind == "yarn":
        return found | _yarn(rope, path), {"rope.scaling.type": "yarn"}
    if kind == "longrope":
        original = _whole({**config, **rope}, "original_max_position_embeddings", path)
        found |= {"rope.scaling.original_context_length": original}
        found |= {"rope.scaling.attn_factor": _long_factor(rope, config, original, path)}
        return found, {}
    return found, {}


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary embedding of the layers that see all tokens."""
    rope = config.get("rope_parameters") or {}
    found = rope.get("full_attention", rope)
    return found if isinstance(found, dict) else {}


def _local(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """That of the layers with a window, where it is another."""
    return (config.get("rope_parameters") or {}).get("sliding_attention")


def _yarn(rope: Mapping[str, Any], path: Path) -> dict[str, int | float]:
    for key, usual in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True), ("attention_factor", None),
                       ("mscale", None), ("mscale_all_dim", None)):  # fmt: skip
        if rope.get(key, usual) not in (usual, None):
            raise InputError(f"llama.cpp reads yarn's {key} as {usual}, {path} sets {rope[key]!r:.40}")
    return {
        "rope.scaling.factor": _number(rope, "factor", path),
        "rope.scaling.original_context_length": _whole(rope, "original_max_position_embeddings", path),
    }


def _long_factor(rope: Mapping[str, Any], config: Mapping[str, Any], original: int, path: Path) -> float:
    """What transformers multiplies cosines and sines by."""
    if rope.get("attention_factor") is not None:
        return _number(rope, "attention_factor", path)
    factor = rope.get("factor") or config["max_position_embeddings"] / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _number(values: Mapping[str, Any], name: str, path: Path) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise InputError(f"{path} must say {name} as a positive number, it says {value!r:.40}")
    return float(value)


def _whole(values: Mapping[str, Any], name: str, path: Path) -> int:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise InputError(f"{path} must say {name} as a positive whole number, it says {value!r:.40}")
    return value
