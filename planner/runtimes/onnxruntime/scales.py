"""A KV cache of 8-bit integers: what the graph says of it, and the scales that a model's own keys and values need.

ONNX Runtime's attention rounds each key and value as it is cached, to a multiple of its channel's scale, and holds no
scale beside it: so the scales are constants of the graph. They come from what the subnet itself caches of a text, with
ROOM above the largest, beyond which values are cut off. Keys are cached as they are turned, by angles that grow with
the position: what counts is the length of each pair that turns together, which no position changes. (With the largest
of each channel instead, taken over 512 tokens, SmolLM2 lost .003 nats within them and .16 beyond 1536.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.runtimes.source import PackageSource
from records.errors import InputError
from supernet.said import split
from supernet.space import Subnet

ATTENTION, KEPT = "GroupQueryAttention", re.compile(r"past_key_values\.(\d+)\.key")
SCALE_INPUTS = (12, 13)  # of attention: those of keys and of values
MOST, ROOM = 127, 1.25
LEAST = 1e-6  # a scale: a channel that is always 0 has one, too
STEPS = 16  # that a scale may have within a factor of 2: in float64 below, so it is the same wherever it is computed
WINDOWS, TOKENS = 4, 256  # of text that are read for the scales

Scales = Mapping[int, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""By layer, of keys and of values: (heads, values of a head)."""


def scales_of(files: PackageSource, subnet: Subnet) -> Scales:
    """The scales for the subnet of an open supernet, from its own text. Torch is imported here."""
    from supernet.exact import in_float64

    known = files.evidence()
    windows = list(split(known["tokens"], known["lengths"]))
    model = files.subnet_model(subnet)
    with in_float64(model, files.rotaries(), min(TOKENS, max(map(len, windows[:WINDOWS])))):
        return scales_in(model, files.spec.rotary_dim, windows)


def scales_in(model: Any, rotary_dim: int, windows: Sequence[Any]) -> Scales:
    """The scales for what a torch `model` caches of the beginnings of `windows`, as it computes."""
    import torch
    from transformers import DynamicCache

    largest: dict[int, list[Any]] = {}
    for window in windows[:WINDOWS]:
        cache = DynamicCache()
        with torch.no_grad():
            model.base_model(torch.from_numpy(window[:TOKENS]).long()[None], past_key_values=cache, use_cache=True)
        layers: Any = cache.layers
        for layer, kept in enumerate(layers):
            sizes = pair_lengths(kept.keys, rotary_dim), kept.values.abs()
            found = [part.amax((0, 2)).double().cpu() for part in sizes]
            largest[layer] = list(map(torch.maximum, largest.get(layer, found), found))
    return {layer: (_scale(keys.numpy()), _scale(values.numpy())) for layer, (keys, values) in largest.items()}


def pair_lengths(keys: Any, rotary_dim: int) -> Any:
    """For each of the first `rotary_dim` values of a head the length of the pair that it turns in, its own and the one
    half as many further; of the others the size. Shapes `(..., values of a head)`."""
    import torch

    pairs = keys[..., :rotary_dim].unflatten(-1, (2, rotary_dim // 2)).norm(dim=-2)
    return torch.cat([pairs, pairs, keys[..., rotary_dim:].abs()], -1)


def _scale(largest: NDArray[np.float64]) -> NDArray[np.float32]:
    wanted = np.maximum(largest * ROOM / MOST, LEAST)
    return np.exp2(np.ceil(np.log2(wanted) * STEPS) / STEPS).astype(np.float32)


def round_cache(graph: Any, scales: Scales) -> None:
    """Let the graph keep its cache as int8, in place."""
    from onnx import TensorProto, helper, numpy_helper

    rounded = 0
    for node in graph.node:
        if node.op_type != ATTENTION:
            continue
        found = KEPT.fullmatch(node.input[3])
        if found is None or int(found[1]) not in scales:
            raise InputError(f"attention must read the KV cache of its layer, {node.name} reads {node.input[3]!r}")
        node.input.extend([""] * (SCALE_INPUTS[1] + 1 - len(node.input)))
        for at, kind, scale in zip(SCALE_INPUTS, "kv", scales[int(found[1])], strict=True):
            name = f"kv_cache.{found[1]}.{kind}_scale"
            graph.initializer.append(numpy_helper.from_array(scale[None, :, None, :], name))
            node.input[at] = name
            node.attribute.append(helper.make_attribute(f"{kind}_quant_type", "PER_CHANNEL"))
        node.attribute.append(helper.make_attribute("kv_cache_bit_width", 8))
        rounded += 1
    values = [value for value in (*graph.input, *graph.output) if value.name.startswith(("past_key", "present."))]
    if len(values) != 4 * rounded:
        raise InputError(f"all of {len(values) // 4} layers must cache in {ATTENTION} to keep int8, {rounded} do")
    for value in values:
        value.type.tensor_type.elem_type = TensorProto.INT8
