"""What the model's own code does at each position, written into the builder's graph: windows, rotations, the factor of
the embedding. The stand-in that the graph was built from has the plain kinds of these."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from planner.runtimes.onnxruntime.standin import Facts
from records.errors import InputError

CACHE = re.compile(r"past_key_values\.(\d+)\.key")
COSINES, SINES = "cos_cache", "sin_cache"
NO_WINDOW = -1


def fit(model: Any, facts: Facts, vocab_size: int, context: int, add: Callable[[str, np.ndarray], Any]) -> None:
    """Change the graph in place. `add` stores a float tensor and returns its initializer."""
    graph = model.graph
    turned = {node.input[2]: node.input[3] for node in graph.node if node.op_type == "RotaryEmbedding"}
    turned |= {n.input[7]: n.input[8] for n in graph.node if n.op_type == "GroupQueryAttention" and len(n.input) > 8}
    if turned and not facts.rotaries:
        raise InputError("the model's rotary embedding has no frequencies that could be read; it cannot be exported")
    plain = {name for pair in turned.items() for name in pair}
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            _fit_attention(node, facts)
        elif facts.centred_norms and "SimplifiedLayer" in node.op_type:
            node.op_type = node.op_type.replace("Simplified", "")
        elif node.op_type == "RotaryEmbedding":
            node.input[2], node.input[3] = _names(next(iter(facts.rotaries)))
    kept = [initializer for initializer in graph.initializer if initializer.name not in plain]
    for kind, rotary in facts.rotaries.items():
        kept += [add(*table) for table in zip(_names(kind), rotary.table(context), strict=True)]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if facts.embedding_scale is not None:
        _scale_embedding(graph, facts.embedding_scale)
    graph.output[0].type.tensor_type.shape.dim[-1].dim_value = vocab_size


def fix_head_size(graph: Any, head_size: int) -> None:
    """Write how wide the KV cache is where the builder writes a name: `safety` compares it with the settings."""
    for value in (*graph.input, *graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[3].dim_value = head_size


def _names(kind: str) -> tuple[str, str]:
    return (f"{COSINES}.{kind}", f"{SINES}.{kind}") if kind else (COSINES, SINES)


def _fit_attention(node: Any, facts: Facts) -> None:
    from onnx import helper

    found = CACHE.fullmatch(node.input[3])
    if found is None:
        raise InputError(f"attention must read the KV cache of its layer, {node.name} reads {node.input[3]!r}")
    layer = int(found[1])
    window, table = facts.windows[layer], facts.tables[layer]
    settings = {"local_window_size": NO_WINDOW if window is None else window}
    if any(a.name == "do_rotary" and a.i for a in node.attribute):
        settings["do_rotary"] = 0 if table is None else 1
        node.input[7], node.input[8] = ("", "") if table is None else _names(table)
    kept = [attribute for attribute in node.attribute if attribute.name not in settings]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in settings.items())])


def _scale_embedding(graph: Any, scale: float) -> None:
    """The builder rounds the factor to two digits."""
    from onnx import numpy_helper

    looked_up = {node.output[0] for node in graph.node if "input_ids" in node.input}
    times = [node for node in graph.node if node.op_type == "Mul" and node.input[0] in looked_up]
    if len(times) != 1:
        raise InputError(f"the embedding must be multiplied once, the graph does it {len(times)} times")
    times[0].input[1] = "embedding_scale"
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), "embedding_scale"))
