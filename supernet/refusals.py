"""What bitfleet cannot train, told from a model's config alone, each in one line that names the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from records.errors import InputError

MOST = 2**31
MOST_LAYERS = 1024
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "intermediate_size", "max_position_embeddings",
)  # fmt: skip
QUANTIZED = ("quantization_config", "compression_config", "quantization", "quant_config")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
MIXTURES = ("mixtral", "qwen3_moe")
EXPERTS = f"a mixture of experts, of which bitfleet trains {' and '.join(MIXTURES)}; give one of them or a dense model"
ATTENTION = ("full_attention", "sliding_attention", "chunked_attention", "attention")
# Classes inside a decoder that hold a state instead of attending; their linears are not those of a transformer.
STATEFUL = re.compile(r"mamba|rwkv|gateddelta|shortconv|recurrent|retention|xlstm|mlstm", re.IGNORECASE)


def refuse_settings(source: Any, settings: Mapping[str, Any]) -> None:
    """InputError for a `config.json` (as a dict) that describes what cannot be trained or what cannot be."""
    kind = settings.get("model_type")
    for name, value in _items(settings):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{source}: {name} in config.json is {value}; get a sound copy")
        if name == "partial_rotary_factor" and value is not None and not _is_share(value):
            raise InputError(
                f"{source}: {name} in config.json must be above 0 and at most 1, it is {str(value)[:40]!r}"
            )
        if "expert" in name and _above_one(value) and kind not in MIXTURES:
            raise InputError(f"{source} is {EXPERTS} ({name} is {value})")
        if name in QUANTIZED and value is not None:
            raise InputError(
                f"{source} is pre-quantized ({_method(value)}, {name} in config.json); bitfleet starts "
                "from the float model, give that one"
            )
    if not isinstance(kind, str) or not kind:
        raise InputError(f"{source}: config.json does not say its model_type; copy it from the model's publisher")
    if STATEFUL.search(kind):
        raise InputError(f"{source} keeps a state and has no attention ({kind}); bitfleet needs a transformer")
    if "transformers_weights" in settings:
        raise InputError(f"{source}: config.json names weights of its own (transformers_weights); remove that line")
    if any(f"{part}_config" in settings for part in ("vision", "audio", "vit")):
        raise InputError(f"{source} is a {kind} model of images or sound; give its language model alone")
    if settings.get("is_encoder_decoder") is True:
        raise InputError(f"{source} is an encoder-decoder ({kind}); bitfleet trains decoders, such as Llama or Qwen")
    architectures, layers = (_list(source, settings, name) for name in ("architectures", "layer_types"))
    if any(str(name).endswith("ForMaskedLM") for name in architectures):
        raise InputError(f"{source} is an encoder ({kind}); bitfleet trains decoders, such as Llama or Qwen")
    if any(layer not in ATTENTION for layer in layers):
        raise InputError(f"{source} has layers of a kind without attention ({kind}); bitfleet needs a transformer")
    _refuse_sizes(source, settings)


def _list(source: Any, settings: Mapping[str, Any], name: str) -> list[Any]:
    value = settings.get(name) or []
    if not isinstance(value, list):
        raise InputError(f"{source}: {name} in config.json must be a list, it is {str(value)[:40]!r}")
    return value


def _items(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        yield str(name), value
        if isinstance(value, Mapping) and name not in QUANTIZED:
            yield from _items(value)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def _above_one(value: Any) -> bool:
    if isinstance(value, list):
        return any(_above_one(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 1


def _method(value: Any) -> str:
    found = value.get("quant_method") if isinstance(value, Mapping) else None
    return str(found or "by an unnamed method")[:40]


def _refuse_sizes(source: Any, settings: Mapping[str, Any]) -> None:
    for name in SIZES:
        value = settings.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MOST):
            raise InputError(f"{source}: {name} in config.json must be a positive integer, it is {str(value)[:40]!r}")
    if (settings.get("num_hidden_layers") or 0) > MOST_LAYERS:
        raise InputError(f"{source}: num_hidden_layers must be at most {MOST_LAYERS}; get a sound config.json")
    hidden, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    if hidden and heads and hidden % heads and not settings.get("head_dim"):
        raise InputError(
            f"{source}: hidden_size must be a multiple of num_attention_heads, config.json has {hidden} and {heads}; "
            "get a sound config.json"
        )
    shared = settings.get("num_key_value_heads")
    if heads and shared and heads % shared:
        raise InputError(
            f"{source}: num_attention_heads must be a multiple of num_key_value_heads, config.json has {heads} and "
            f"{shared}; get a sound config.json"
        )


def refuse_config(source: Any, config: Any) -> None:
    """InputError for a config object: its class fills in what config.json leaves out."""
    refuse_settings(source, config.to_dict())
    if getattr(config, "num_attention_heads", None) is None:
        raise InputError(f"{source} has no attention ({config.model_type}); bitfleet needs a transformer")
    rows = config.get_text_config().vocab_size
    refuse_token_ids(source, {name: getattr(config, name, None) for name in IDS}, rows, "config.json")


def refuse_token_ids(source: Any, ids: Mapping[str, Any], rows: int, file: str) -> None:
    """InputError for a special token that the embedding's `rows` do not hold. Old models write -1 for no padding."""
    for name in IDS:
        value = ids.get(name)
        for number in value if isinstance(value, list) else [value]:
            if number is None or (name == "pad_token_id" and number == -1):
                continue
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < rows:
                raise InputError(
                    f"{source}: {name} in {file} is {str(number)[:40]}, outside the table of {rows} tokens; mend {file}"
                )


def refuse_model(source: Any, model: Any) -> None:
    """InputError for what the modules of a model, without weights, show it to be."""
    kinds = {type(module).__name__ for module in model.modules()}
    mixture = any(re.search(r"moe|expert|topkrouter", kind, re.IGNORECASE) for kind in kinds)
    if mixture and model.config.model_type not in MIXTURES:
        raise InputError(f"{source} is {EXPERTS} ({type(model).__name__})")
    stateful = sorted(kind for kind in kinds if STATEFUL.search(kind))
    if stateful:
        raise InputError(f"{source} has layers without attention ({stateful[0]}); bitfleet needs a transformer")
    if model.get_output_embeddings() is None:
        raise InputError(f"{source} has no head that predicts tokens ({type(model).__name__}); give a language model")


def refuse_tokenizer(source: Any, tokenizer: Any, rows: int) -> None:
    """InputError where the tokenizer has tokens that the embedding's `rows` do not hold."""
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if last < 0:
        raise InputError(f"{source}: its tokenizer is empty; give the folder with its tokenizer.json")
    if last >= rows:
        raise InputError(
            f"{source}: its tokenizer has the token {token!r} with id {last}, the embedding has {rows} rows: the "
            "tokenizer is larger; give the tokenizer that the model was trained with"
        )
