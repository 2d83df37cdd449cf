"""What a package may hold, checked before ONNX Runtime reads any of it: a package may be a stranger's.

The runtime's settings can name libraries to load and files anywhere; a graph can hold operators of other libraries,
point outside the folder, or never end. Settings and operators are therefore compared with lists of what exporters
write: what is not on the list is refused by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from planner.runtimes.caches import CacheType
from planner.runtimes.onnxruntime.cache import CACHES
from planner.runtimes.onnxruntime.protobuf import fields, within
from records.errors import InputError

GRAPH, WEIGHTS, CONFIG = "model.onnx", "model.onnx.data", "genai_config.json"
REQUIRED = (GRAPH, WEIGHTS, CONFIG, "tokenizer.json")
SUFFIXES = (".json", ".jinja", ".txt", ".model", ".onnx", ".data", ".safetensors", ".bpe", ".tiktoken")
MOST_TOKENS = 2**24  # of a context or a vocabulary

# The standard operators that compute on tensors. None of them runs a graph of its own, reads a file, or loads code;
# `If` does run one of two graphs, which are checked like the first.
_STANDARD = (
    "Add And Cast Clip Concat Constant ConstantOfShape Cos Div Equal Erf Exp Expand Flatten Gather GatherElements "
    "Gelu Gemm Greater GreaterOrEqual Identity If IsInf LayerNormalization Less LessOrEqual Log LpNormalization MatMul "
    "Max Min Mul Neg Not Or Pow QuickGelu Range Reciprocal ReduceMax ReduceMean ReduceSum Relu Reshape "
    "RMSNormalization ScatterElements Shape Sigmoid SimplifiedLayerNormalization Sin Slice Softmax Softplus Split Sqrt "
    "Squeeze Sub Swish Tanh Tile TopK Transpose Trilu Unsqueeze Where"
)
_MICROSOFT = (
    "BiasGelu FastGelu GatherBlockQuantized Gelu GroupQueryAttention MatMulNBits MultiHeadAttention QuickGelu "
    "RotaryEmbedding SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization"
)
OPERATORS = {
    "": frozenset(_STANDARD.split()),
    "ai.onnx": frozenset(_STANDARD.split()),
    "com.microsoft": frozenset(_MICROSOFT.split()),
}


def check(folder: Path, sizes: Mapping[str, int], context: int, cache: CacheType = CACHES[0]) -> None:
    """InputError naming what ONNX Runtime would read in `folder` and an exporter does not write.

    `sizes` are the bytes of each file that the manifest lists, by name; the files are known to be those.
    `context` is how many tokens the plan says that it serves, `cache` how it keeps their keys and values.
    """
    for name in REQUIRED:
        if name not in sizes:
            raise InputError(f"a package for onnxruntime has {', '.join(REQUIRED)}; {folder} lists no {name}")
    for name in sizes:
        if not name.endswith(SUFFIXES):
            raise InputError(
                f"files of a package end in {', '.join(SUFFIXES)}, {folder} lists {name!r}; do not load it"
            )
    try:
        config = json.loads(
            (folder / CONFIG).read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
        _check_settings(config, SETTINGS, "")
        _check_needed(config)
        if context > config["search"]["max_length"]:
            raise ValueError(
                f"{CONFIG} has room for {config['search']['max_length']} tokens, the plan is for {context}"
            )
        graph = memoryview((folder / GRAPH).read_bytes())
        _check_graph(graph, sizes, GRAPHS["model"])
        _check_cache(graph, config["model"]["decoder"], cache)
    except (ValueError, RecursionError) as error:
        what = str(error) or "nested too deep"
        raise InputError(f"{folder} holds what no exporter writes, so it is not loaded: {what}") from None


# --- settings -----------------------------------------------------------------------------------------------------


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _number(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and least <= value <= most


def _flag(value: Any) -> bool:
    return type(value) is bool


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(known) and value == known for known in values)


def _list_of(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) <= 4096 and all(rule(member) for member in value)


def _name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value) is not None


_token = _whole(-1, MOST_TOKENS)
_size = _whole(1, MOST_TOKENS)


def _tokens(value: Any) -> bool:
    return _token(value) or _list_of(_token)(value)


SETTINGS: dict[str, Any] = {
    "model": {
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _tokens),
        **dict.fromkeys(("bot_token_id", "eot_token_id", "bor_token_id", "eor_token_id", "sep_token_id"), _token),
        "context_length": _size,
        "vocab_size": _size,
        "type": _name,
        "decoder": {
            "session_options": {
                "log_id": _name,
                "log_severity_level": _whole(0, 4),
                "provider_options": _one_of([], [{"cpu": {}}]),
                **dict.fromkeys(("intra_op_num_threads", "inter_op_num_threads"), _whole(0, 4096)),
                **dict.fromkeys(("enable_cpu_mem_arena", "enable_mem_pattern"), _flag),
                **dict.fromkeys(("session.disable_prepacking", "session.use_env_allocators"), _one_of("0", "1")),
                "graph_optimization_level": _name,
            },
            "filename": _one_of(GRAPH),
            **dict.fromkeys(
                ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"), _size
            ),
            "inputs": {
                "input_ids": _one_of("input_ids"),
                "attention_mask": _one_of("attention_mask"),
                "position_ids": _one_of("position_ids"),
                "past_key_names": _one_of("past_key_values.%d.key"),
                "past_value_names": _one_of("past_key_values.%d.value"),
            },
            "outputs": {
                "logits": _one_of("logits"),
                "present_key_names": _one_of("present.%d.key"),
                "present_value_names": _one_of("present.%d.value"),
            },
            "sliding_window": {
                "window_size": _size,
                "pad_value": _token,
                "alignment": _one_of("left", "right"),
                **dict.fromkeys(("slide_key_value_cache", "slide_inputs"), _flag),
                "layers": _list_of(_whole(0, 4096)),
                "cache_slack": _whole(0, MOST_TOKENS),
            },
        },
    },
    "search": {
        **dict.fromkeys(("do_sample", "early_stopping", "past_present_share_buffer"), _flag),
        **dict.fromkeys(("max_length", "chunk_size"), _size),
        **dict.fromkeys(("min_length", "no_repeat_ngram_size", "top_k"), _whole(0, MOST_TOKENS)),
        **dict.fromkeys(("num_beams", "num_return_sequences"), _one_of(1)),
        **dict.fromkeys(("diversity_penalty", "length_penalty", "repetition_penalty"), _number(-100, 100)),
        "temperature": _number(0, 100),
        "top_p": _number(0, 1),
        "min_p": _number(0, 1),
        "random_seed": _whole(-1, 2**31 - 1),
    },
}


NEEDED = (  # what is asked of the settings without a default
    ("model", "vocab_size"), ("model", "eos_token_id"), ("model", "decoder", "num_key_value_heads"),
    ("model", "decoder", "num_hidden_layers"), ("model", "decoder", "head_size"),
    ("model", "decoder", "session_options"), ("search", "max_length"),
)  # fmt: skip


def _check_settings(value: Any, rule: Any, where: str) -> None:
    if not isinstance(rule, dict):
        if not rule(value):
            raise ValueError(f"{CONFIG} may not set {where} to {value!r:.80}")
        return
    if not isinstance(value, dict):
        raise ValueError(f"{CONFIG} must have an object at {where or 'its top'}")
    for key, inner in value.items():
        at = f"{where}.{key}" if where else key
        if key not in rule:
            raise ValueError(f"{CONFIG} may not set {at!r:.80}")
        _check_settings(inner, rule[key], at)


def _check_needed(config: dict[str, Any]) -> None:
    for path in NEEDED:
        found: Any = config
        for key in path:
            if key not in found:
                raise ValueError(f"{CONFIG} must set {'.'.join(path)}")
            found = found[key]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # two readers may take two different ones of them
        raise ValueError("an object sets a key twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"numbers must be finite, got {name}")


# --- the graph ----------------------------------------------------------------------------------------------------

# Of each message of ONNX's schema: the fields that hold others, by number. What is none of these is plain data.
GRAPHS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_DOMAIN, _OPERATOR, _EXTERNAL = 7, 4, 13
_INPUTS, _INPUT_NAME, _ELEMENT, _DIMENSIONS = (7, 11), 1, (2, 1, 1), (2, 1, 2, 1)
ELEMENTS = {"f32": 1, "int8": 3}  # numbers of ONNX's types


def _check_graph(data: memoryview, sizes: Mapping[str, int], inside: dict[int, str], kind: str = "model") -> None:
    """ValueError for an operator or a file that is not allowed, in this message or in one that it holds."""
    found = list(fields(data))
    if kind == "node":
        _check_operator([_bytes(v) for n, v in found if n == _OPERATOR], [_bytes(v) for n, v in found if n == _DOMAIN])
    elif kind == "tensor":
        _check_place([v for n, v in found if n == _EXTERNAL], sizes)
    for number, value in found:
        name = inside.get(number)
        if name is None:
            continue
        if name not in GRAPHS or not isinstance(value, memoryview):
            raise ValueError(f"{GRAPH} may not hold a {name}")
        _check_graph(value, sizes, GRAPHS[name], name)


def _bytes(value: int | memoryview) -> bytes:
    """What has to be a text or a message; `bytes` of a number would be as many zeros."""
    if isinstance(value, int):
        raise ValueError(f"{GRAPH} has a number where a text or a message must be")
    return bytes(value)


def _check_operator(operators: list[bytes], domains: list[bytes]) -> None:
    for domain in domains or [b""]:
        for operator in operators or [b""]:
            allowed = OPERATORS.get(domain.decode(errors="replace"), frozenset())
            if operator.decode(errors="replace") not in allowed:
                raise ValueError(f"{GRAPH} may not compute {operator!r:.60} of the operators {domain!r:.60}")


def _check_place(entries: list[Any], sizes: Mapping[str, int]) -> None:
    """Where a tensor's bytes are, which `entries` of a key and a value say: within the weight file."""
    if not entries:
        return
    pairs = [{number: _bytes(value) for number, value in fields(memoryview(_bytes(entry)))} for entry in entries]
    place = {pair.get(1, b"").decode(errors="replace"): pair.get(2, b"").decode(errors="replace") for pair in pairs}
    if len(place) != len(pairs) or set(place) != {"location", "offset", "length"}:
        raise ValueError(
            f"{GRAPH} must say once for a tensor its location, offset and length, got {sorted(place)!r:.80}"
        )
    if place["location"] != WEIGHTS:
        raise ValueError(f"{GRAPH} may only point into {WEIGHTS}, got {place['location']!r:.80}")
    numbers = [int(place[key]) for key in ("offset", "length") if re.fullmatch(r"[0-9]{1,18}", place[key], re.ASCII)]
    if len(numbers) != 2 or sum(numbers) > sizes[WEIGHTS]:
        raise ValueError(
            f"{GRAPH} points beyond the end of {WEIGHTS}: {place['offset']!r:.30}, {place['length']!r:.30}"
        )


def _check_cache(data: memoryview, decoder: dict[str, Any], cache: CacheType) -> None:
    """The settings say how large a KV cache is reserved, the graph how large a one it reads, of the plan's type."""
    layers, heads, size = (decoder[key] for key in ("num_hidden_layers", "num_key_value_heads", "head_size"))
    found = [read for read in map(_input, within(data, *_INPUTS)) if read[0].startswith(b"past_key_values.")]
    names = [name for name, _, _ in found]
    if len(names) != 2 * layers or {*names} != {
        f"past_key_values.{layer}.{part}".encode() for layer in range(layers) for part in ("key", "value")
    }:
        raise ValueError(f"{CONFIG} has {layers} layers, {GRAPH} reads the keys and values of others")
    for name, kinds, dimensions in found:
        if kinds != [ELEMENTS[cache.name]]:
            raise ValueError(f"the plan keeps keys and values as {cache.name}, {GRAPH} reads others in {name!r:.60}")
        if len(dimensions) != 4 or (dimensions[1], dimensions[3]) != (heads, size):
            raise ValueError(
                f"{CONFIG} has {heads} heads of {size} for keys and values, {GRAPH} reads others in {name!r:.60}"
            )


def _input(data: int | memoryview) -> tuple[bytes, list[int | memoryview], list[int | None]]:
    """The name of an input, the numbers of its element types, and each of its dimensions where that is a number and
    only one."""
    if not isinstance(data, memoryview):
        return b"", [], []
    names = [bytes(name) for name in within(data, _INPUT_NAME) if isinstance(name, memoryview)]
    said = [list(fields(d)) if isinstance(d, memoryview) else [] for d in within(data, *_DIMENSIONS)]
    numbers = [value[0][1] if len(value) == 1 else None for value in said]
    kinds = list(within(data, *_ELEMENT))
    return b" ".join(names), kinds, [number if isinstance(number, int) else None for number in numbers]
