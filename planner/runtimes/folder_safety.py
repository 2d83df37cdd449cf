"""What a package that is a Hugging Face folder may hold, checked before it is loaded: it may be a stranger's.

A folder's files are those that exporters write, by name: no Python code and no pickle is among them. Its settings name
no code, its weights are tensors that fill one file, and its config asks for the model that they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from planner.runtimes.model_folder import CODE_KEYS, CONFIG, FILES, GENERATION, INDEX, REQUIRED
from planner.runtimes.tensor_file import WEIGHTS, Tensor, read_layout, unique
from records.errors import InputError

SETTINGS = (CONFIG, GENERATION, INDEX, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
COUNTS = ("num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size", "hidden_size")
DOWN = (".mlp.down_proj", *(f".{number}.{name}" for number in range(10) for name in ("down_proj", "w2")))
MOST = 2**24  # of a count in a config: tokens of a context, of a vocabulary, channels
MOST_DEPTH = 8

Shape = tuple[int, int]
Shapes = Callable[[Mapping[str, Any], Mapping[str, Tensor]], Mapping[str, Shape]]
"""(out_features, in_features) of each matrix by its name, of a config and of the tensors by their names; ValueError
where the two do not agree."""


def check(
    folder: Path, listed: Mapping[str, int], runtime: str, architectures: Iterable[str], context: int, shapes: Shapes
) -> None:
    """InputError naming what a loader would read in `folder` and an exporter does not write.

    `listed` are the bytes of each file that the manifest lists, by name; the plan serves `context` tokens.
    """
    _check_files(folder, listed, runtime)
    try:
        settings = {name: _settings(folder / name) for name in SETTINGS if name in listed}
        config = settings[CONFIG]
        if config.get("architectures") not in [[name] for name in architectures]:
            raise ValueError(f"{CONFIG} names the architecture {config.get('architectures')!r:.80}")
        if context > _count(config, "max_position_embeddings"):
            raise ValueError(f"{CONFIG} has room for fewer tokens than the plan's context of {context}")
        tensors = {tensor.name: tensor for tensor in read_layout(folder / WEIGHTS)[1]}
        if settings[INDEX].get("weight_map") != dict.fromkeys(tensors, WEIGHTS):
            raise ValueError(f"{INDEX} must name every tensor of {WEIGHTS} and nothing else")
        _check_config(config, shapes(config, tensors))
    except (ValueError, RecursionError) as error:
        what = str(error) or "nested too deep"
        raise InputError(f"{folder} holds what no exporter writes, so it is not loaded: {what}") from None


def check_tensors(tensors: Mapping[str, Tensor], expected: Iterable[Tensor], parts: Iterable[str]) -> None:
    """ValueError where one of the `expected` tensors is not there as it should be, or another has one of the `parts` of
    a packed matrix as the end of its name."""
    wanted = {tensor.name: tensor for tensor in expected}
    for name, tensor in wanted.items():
        if tensors.get(name) != tensor:
            raise ValueError(f"{WEIGHTS} must hold {name} of {tensor.kind} {list(tensor.shape)}")
    for name in tensors:
        if name.rpartition(".")[2] in parts and name not in wanted:
            raise ValueError(f"{CONFIG} must say how {name} is packed")


def scale_shape(tensors: Mapping[str, Tensor], name: str) -> Shape:
    """Rows and groups of a packed matrix."""
    tensor = tensors.get(name)
    if tensor is None or len(tensor.shape) != 2:
        raise ValueError(f"{WEIGHTS} must hold {name!r:.80}")
    return tensor.shape[0], tensor.shape[1]


def _check_files(folder: Path, listed: Mapping[str, int], runtime: str) -> None:
    for name in REQUIRED:
        if name not in listed:
            raise InputError(f"a package for {runtime} has {', '.join(REQUIRED)}; {folder} lists no {name}")
    for name in listed:
        if name not in FILES:
            raise InputError(f"files of a package are {', '.join(FILES)}; {folder} lists {name!r:.80}; do not load it")


def _settings(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError for a key that is there twice, a number that is none, a key by which code is named."""
    value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique, parse_constant=_no_constant)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must hold an object")
    _check_keys(path.name, value, MOST_DEPTH)
    return value


def _check_keys(file: str, value: Any, depth: int) -> None:
    if depth < 0:
        raise ValueError(f"{file} is nested too deep")
    if isinstance(value, list):
        for member in value:
            _check_keys(file, member, depth - 1)
    if isinstance(value, dict):
        for key, member in value.items():
            if key in CODE_KEYS:
                raise ValueError(f"{file} may not set {key!r}, by which code is loaded")
            _check_keys(file, member, depth - 1)


def _no_constant(name: str) -> None:
    raise ValueError(f"numbers must be finite, got {name}")


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= MOST:
        raise ValueError(f"{CONFIG} must set {key} to a whole number up to {MOST}, got {value!r:.40}")
    return value


def _check_config(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
    """A loader makes room by the config, before it sees a weight."""
    counts = {name: _count(config, name) for name in COUNTS}
    if shapes.get("model.embed_tokens") != (counts["vocab_size"], counts["hidden_size"]):
        raise ValueError(f"{CONFIG} says a vocabulary or a width that the weights have not")
    layers = {name.split(".")[2] for name in shapes if name.startswith("model.layers.")}
    if layers != {str(layer) for layer in range(counts["num_hidden_layers"])}:
        raise ValueError(f"{CONFIG} says {counts['num_hidden_layers']} layers, {WEIGHTS} has others")
    down = {shape[1] for name, shape in shapes.items() if name.endswith(DOWN)}
    width = counts["intermediate_size"]
    if "moe_intermediate_size" in config:
        width = _count(config, "moe_intermediate_size")
    if down != {width}:
        raise ValueError(f"{CONFIG} says feed-forward blocks of {width}, {WEIGHTS} has others")
    experts = [name for name in shapes if ".experts." in name and name.endswith(DOWN)]
    count = _count(config, "num_local_experts") * len(layers) if "num_local_experts" in config else 0
    if len(experts) != count:
        raise ValueError(f"{CONFIG} says {count} experts in all layers, {WEIGHTS} has {len(experts)}")
