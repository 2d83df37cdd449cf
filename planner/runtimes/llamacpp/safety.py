"""What a package may hold, checked before llama.cpp reads any of it: a package may be a stranger's.

A GGUF file is data and runs nothing but its chat template, which bitfleet renders in a child process. What is left to
fear are a reader's mistakes: keys that no exporter writes, counts that do not agree, tensors that lie over each other
or beyond the end, types of other programs under the same number. What an exporter does not write is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from planner.runtimes.caches import CacheType
from planner.runtimes.llamacpp.architectures import ARCHITECTURES, HIDDEN, Architecture
from planner.runtimes.llamacpp.formats import Q2_0, TYPES
from planner.runtimes.llamacpp.header import padded
from planner.runtimes.llamacpp.modelfile import MODELFILE, unquoted
from planner.runtimes.llamacpp.serving import CACHES, SETTINGS, WEIGHTS, Serving
from planner.runtimes.llamacpp.tensors import FREQUENCIES, LONG, ROUTER, SHORT, STACKED
from planner.tokens import TOKENIZER
from records.errors import InputError
from supernet.sources.gguf_file import GGUFTensor, Head, read_head

REQUIRED = (WEIGHTS, SETTINGS, TOKENIZER)
SUFFIXES = (".json", ".jinja", ".txt", ".safetensors")
SIZES = {kind.number: (kind.block, kind.block_bytes) for kind in TYPES.values()}
OTHER_Q2_0 = (128, 34)  # a fork's blocks under the same number: 2.125 bits
MOST = 2**24  # of a context, a vocabulary, a width
MOST_LAYERS = 10_000
MOST_THREADS = 4096
MOST_MODELFILE = 2**16  # bytes


def check(
    folder: Path, sizes: Mapping[str, int], context: int, cache: CacheType = CACHES[0], gpu_layers: int | None = None
) -> None:
    """InputError naming what llama.cpp would read in `folder` and an exporter does not write.

    `sizes` are the bytes of each file that the manifest lists, by name; `context` is how many tokens the plan says that
    it serves, `cache` how it keeps their keys and values, `gpu_layers` how many layers a GPU has.
    """
    for name in REQUIRED:
        if name not in sizes:
            raise InputError(f"a package for llamacpp has {', '.join(REQUIRED)}; {folder} lists no {name}")
    for name in sizes:
        if name not in (WEIGHTS, MODELFILE) and not name.endswith(SUFFIXES):
            known = f"{WEIGHTS}, {MODELFILE} and files that end in {', '.join(SUFFIXES)}"
            raise InputError(f"a package for llamacpp has {known}, {folder} lists {name!r:.80}; do not load it")
    try:
        if MODELFILE in sizes:
            _check_modelfile(folder / MODELFILE)
        serving, head = Serving.load(folder), check_gguf(folder / WEIGHTS, context)
        _check_serving(serving, head, context, cache)
        if serving.gpu_layers != gpu_layers:
            raise ValueError(f"{SETTINGS} puts {serving.gpu_layers} layers on a GPU, the plan {gpu_layers}")
    except ValueError as error:
        raise InputError(f"{folder} holds what no exporter writes, so it is not loaded: {error}") from None


def check_gguf(path: Path, context: int) -> Head:
    """The head of a file that an exporter wrote. ValueError for any other."""
    head = _read(path)
    _check_places(head.tensors, head.start, path.stat().st_size)
    known = _architecture(head.metadata)
    numbers = _check_keys(head.metadata, known)
    if context > numbers["context_length"]:
        raise ValueError(f"{WEIGHTS} has room for {numbers['context_length']} tokens, the plan is for {context}")
    _check_vocabulary(head.metadata, numbers["vocab_size"])
    _check_shapes(head.tensors, known, numbers)
    return head


def _check_serving(serving: Serving, head: Head, context: int, cache: CacheType) -> None:
    """A cache of the served context is reserved, so it and its type are the plan's."""
    if serving.kv_type != cache.name:
        raise ValueError(f"{SETTINGS} keeps keys and values as {serving.kv_type}, the plan as {cache.name}")
    room = head.metadata[f"{head.metadata['general.architecture']}.context_length"]
    if not context <= serving.context <= room:
        raise ValueError(
            f"{SETTINGS} serves {serving.context} tokens, the plan is for {context} and {WEIGHTS} for {room}"
        )
    if serving.threads is not None and serving.threads > MOST_THREADS:
        raise ValueError(f"{SETTINGS} may name {MOST_THREADS} threads at most, got {serving.threads}")


# --- where tensors lie --------------------------------------------------------------------------------------------


def _read(path: Path) -> Head:
    try:
        return read_head(path, SIZES)
    except InputError as error:
        try:
            read_head(path, {**SIZES, Q2_0.number: OTHER_Q2_0})
        except InputError:
            raise error from None
        raise ValueError(_other_layout(WEIGHTS)) from None


def _check_places(tensors: Mapping[str, GGUFTensor], start: int, size: int) -> None:
    """Each tensor begins where the one before ends, and the last ends the file."""
    at = start
    for name, tensor in tensors.items():
        if tensor.offset != at:
            raise ValueError(f"{name!r:.80} begins at byte {tensor.offset}, the tensor before it ends at {at}")
        at += padded(tensor.bytes)
        following = min((t.offset for t in tensors.values() if t.offset > tensor.offset), default=size)
        if tensor.kind == Q2_0.number and following - tensor.offset == padded(_other_bytes(tensor)):
            raise ValueError(_other_layout(name))
    if at != size:
        raise ValueError(f"{WEIGHTS} has {size} bytes, its tensors end at {at}")


def _other_bytes(tensor: GGUFTensor) -> int:
    weights = tensor.bytes // Q2_0.block_bytes * Q2_0.block
    return weights // OTHER_Q2_0[0] * OTHER_Q2_0[1]


def _other_layout(name: str) -> str:
    return f"{name!r:.80} is of type Q2_0 in blocks of 128 weights, another program's; llama.cpp's has 64"


# --- metadata -----------------------------------------------------------------------------------------------------


def _architecture(metadata: Mapping[str, Any]) -> Architecture:
    name = metadata["general.architecture"]
    names = dict.fromkeys(known.name for known in ARCHITECTURES.values())
    if name not in names:
        raise ValueError(f"the architecture must be one of {', '.join(names)}, got {name!r:.40}")
    mixture = f"{name}.expert_count" in metadata
    for known in ARCHITECTURES.values():
        if (known.name, known.experts) == (name, mixture):
            return known
    raise ValueError(f"{WEIGHTS} {'may not' if mixture else 'must'} set {name}.expert_count")


def _whole(most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 1 <= value <= most


def _real(value: Any) -> bool:
    return type(value) is float and 0 < value < 1e30


def _flag(value: Any) -> bool:
    return type(value) is bool


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MOST and all(isinstance(member, str) for member in value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MOST and all(type(member) in (int, float) for member in value)


def _token(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST


GENERAL: dict[str, Callable[[Any], bool]] = {
    "general.architecture": _text,
    "general.type": lambda value: value == "model",
    "general.name": _text,
    **dict.fromkeys(("general.file_type", "general.quantization_version"), _token),
    "tokenizer.ggml.model": lambda value: value in ("gpt2", "llama"),
    "tokenizer.ggml.pre": lambda value: isinstance(value, str) and re.fullmatch(r"[a-z0-9-]{1,40}", value) is not None,
    **dict.fromkeys(("tokenizer.ggml.tokens", "tokenizer.ggml.merges"), _texts),
    **dict.fromkeys(("tokenizer.ggml.token_type", "tokenizer.ggml.scores"), _numbers),
    **{f"tokenizer.ggml.{key}_token_id": _token for key in ("bos", "eos", "eot", "eom", "unknown", "padding")},
    **{
        f"tokenizer.ggml.{key}": _flag
        for key in ("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces")
    },
    "tokenizer.chat_template": _text,
}
_MUST = (
    "block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size", "context_length",
)  # fmt: skip
_EXPERTS = ("expert_count", "expert_used_count", "expert_feed_forward_length")
MODEL: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys((*_MUST, *_EXPERTS), _whole(MOST)),
    "block_count": _whole(MOST_LAYERS),
    "attention.sliding_window": _whole(MOST),
    "rope.scaling.original_context_length": _whole(MOST),
    **dict.fromkeys(
        ("attention.layer_norm_rms_epsilon", "attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base",
         "rope.freq_base_swa", "rope.scaling.factor", "rope.scaling.attn_factor"), _real
    ),
    **dict.fromkeys([key for known in ARCHITECTURES.values() for _, key in known.settings], _real),
    "rope.scaling.type": lambda value: value in ("linear", "yarn"),
}  # fmt: skip


def _check_keys(metadata: Mapping[str, Any], known: Architecture) -> dict[str, int]:
    """The whole numbers that the model must have."""
    model = {key: rule for key, rule in MODEL.items() if known.experts or key not in _EXPERTS}
    rules = GENERAL | {f"{known.name}.{key}": rule for key, rule in model.items()}
    for key, value in metadata.items():
        if key not in rules:
            raise ValueError(f"{WEIGHTS} may not set {key!r:.80}")
        if not rules[key](value):
            raise ValueError(f"{WEIGHTS} may not set {key!r:.80} to {value!r:.80}")
    must = (*_MUST, *_EXPERTS) if known.experts else _MUST
    needed = [*(f"{known.name}.{key}" for key in (*must, "attention.layer_norm_rms_epsilon")),
              "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"]  # fmt: skip
    for key in needed:
        if key not in metadata:
            raise ValueError(f"{WEIGHTS} must set {key}")
    found = {key: metadata[f"{known.name}.{key}"] for key in must}
    if known.experts and found["expert_used_count"] > found["expert_count"]:
        raise ValueError("a token may choose no more experts than there are")
    if found["attention.head_count"] % found["attention.head_count_kv"]:
        raise ValueError("the heads of queries must be a multiple of those of keys and values")
    if found["rope.dimension_count"] > found["attention.key_length"]:
        raise ValueError("no more values of a head may rotate than it has")
    return found


def _check_vocabulary(metadata: Mapping[str, Any], rows: int) -> None:
    for name in ("tokens", "token_type", "scores"):
        values = metadata.get(f"tokenizer.ggml.{name}")
        if values is not None and len(values) != rows:
            raise ValueError(f"tokenizer.ggml.{name} has {len(values)} members, the embedding has {rows} rows")
    for key, value in metadata.items():
        if key.endswith("_token_id") and value >= rows:
            raise ValueError(f"{key} is {value}, the embedding has {rows} rows")
    if any(type(kind) is not int or not 1 <= kind <= 6 for kind in metadata["tokenizer.ggml.token_type"]):
        raise ValueError("the kinds of tokens are from 1 to 6")


# --- shapes -------------------------------------------------------------------------------------------------------


def _check_shapes(tensors: Mapping[str, GGUFTensor], known: Architecture, numbers: Mapping[str, int]) -> None:
    needed, optional = expected(known, numbers)
    for name, tensor in tensors.items():
        shape = needed.get(name) or optional.get(name)
        if shape is None:
            raise ValueError(f"{WEIGHTS} may not hold a tensor {name!r:.80}")
        if tensor.shape != shape:
            raise ValueError(f"{name} must be of shape {shape}, got {tensor.shape}")
        if (len(shape) == 1 or ROUTER in name) != (tensor.kind == 0):
            raise ValueError(f"{name} may not be of GGML type {tensor.kind}")
    if missing := sorted(needed.keys() - tensors.keys()):
        raise ValueError(f"{WEIGHTS} lacks the tensor {missing[0]}")


Shapes = dict[str, tuple[int, ...]]


def expected(known: Architecture, numbers: Mapping[str, int]) -> tuple[Shapes, Shapes]:
    """The shapes of the tensors that a file must hold, and of those that it may."""
    hidden, feed, vocabulary = (numbers[k] for k in ("embedding_length", "feed_forward_length", "vocab_size"))
    head = numbers["attention.key_length"]
    queries, keys = (numbers[f"attention.{name}"] * head for name in ("head_count", "head_count_kv"))
    matrices: Shapes = {"attn_output": (hidden, queries), "ffn_down": (hidden, feed)}
    if known.name == "phi3":
        matrices |= {"attn_qkv": (queries + 2 * keys, hidden), "ffn_up": (2 * feed, hidden)}
    else:
        matrices |= {"attn_q": (queries, hidden), "attn_k": (keys, hidden), "attn_v": (keys, hidden)}
        matrices |= {"ffn_gate": (feed, hidden), "ffn_up": (feed, hidden)}
    floats: Shapes = {}
    if known.experts:
        count, feed = numbers["expert_count"], numbers["expert_feed_forward_length"]
        matrices = {name: shape for name, shape in matrices.items() if not name.startswith("ffn_")}
        matrices |= {f"ffn_{part}{STACKED}": (count, feed, hidden) for part in ("gate", "up")}
        matrices[f"ffn_down{STACKED}"] = (count, hidden, feed)
        floats[ROUTER] = (count, hidden)
    norms: Shapes = {name: (hidden if long == HIDDEN else head,) for name, long in known.norms.values()}
    layers = range(numbers["block_count"])
    needed: Shapes = {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}
    needed |= {f"blk.{i}.{name}.weight": shape for i in layers for name, shape in (matrices | norms | floats).items()}
    optional: Shapes = {"output.weight": (vocabulary, hidden)}
    optional |= dict.fromkeys((FREQUENCIES, LONG, SHORT), (numbers["rope.dimension_count"] // 2,))
    optional |= {
        f"blk.{i}.{name}.bias": shape[:1] for i in layers for name, shape in matrices.items() if len(shape) < 3
    }
    return needed, optional


# --- the Modelfile ------------------------------------------------------------------------------------------------


def _check_modelfile(path: Path) -> None:
    """Lines that an exporter writes: Ollama would fetch a model, or take an adapter, by others."""
    if path.stat().st_size > MOST_MODELFILE:
        raise ValueError(f"{MODELFILE} has at most {MOST_MODELFILE} bytes")
    for line in path.read_text(encoding="utf-8").splitlines():
        if not _LINE.fullmatch(line) or (line.startswith(_STOP) and unquoted(line.removeprefix(_STOP)) is None):
            raise ValueError(f"{MODELFILE} may not say {line!r:.80}")


_STOP = "PARAMETER stop "
_LINE = re.compile(
    rf"FROM \./{re.escape(WEIGHTS)}|PARAMETER num_ctx [0-9]{{1,8}}|PARAMETER temperature 0|"
    rf"PARAMETER num_gpu [0-9]{{1,5}}|{_STOP}.+"
)
