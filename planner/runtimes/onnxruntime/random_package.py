"""A package of a shape with random weights, in seconds and without a supernet: cost depends on bytes, not on values.

The graph is the one that an exported Llama has, node by node; a test compares the two. There is no tokenizer: such a
package is served token ids, and says nothing.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from planner.runtimes.caches import CacheType
from planner.runtimes.onnxruntime import costs, storage
from planner.runtimes.onnxruntime.cache import CACHES, INT8
from planner.runtimes.onnxruntime.export import CONFIG, MODEL, WEIGHTS, WeightFile, replaced
from planner.runtimes.onnxruntime.scales import round_cache
from planner.runtimes.shapes import Shape
from supernet.space import Choice, Subnet
from supernet.spec import EMBEDDING, UnitSpec

POOL_BYTES = 2**22  # random bytes that every matrix takes its own from
MASK = "/model/attn_mask_reformat/attn_mask_subgraph"
ONE, ONES, LAST = "/model/constants/INT64/1", "/model/constants/INT64/[1]", "/model/constants/INT64/-1"
EPSILON = 1e-5


def write(
    shape: Shape, subnet: Subnet, context: int, threads: int | None, folder: Path, batch: int = 1,
    cache: CacheType = CACHES[0],
) -> Path:  # fmt: skip
    """Write graph, weights and settings into the new `folder`, and return it."""
    import onnx
    from onnx import helper

    folder.mkdir()
    spec = shape.spec()
    matrices = dict(_matrices(shape))
    choices = {name: subnet[unit.name] for name, (unit, _, _) in matrices.items()}
    sizes = {name: (inputs, outputs) for name, (_, inputs, outputs) in matrices.items()}
    tables = {name for name, (unit, _, _) in matrices.items() if unit.is_table}
    with WeightFile(folder / WEIGHTS) as file:
        kept = [
            file.add(part, array) for name, size in sizes.items() for part, array in _random(name, *size, choices[name])
        ]
        kept += [file.add(name, array, pad=False) for name, array in _floats(shape, context)]
    shapes: dict[str, Any] = {
        name: size[::-1] if name == "model.embed_tokens.weight" else size for name, size in sizes.items()
    }
    nodes = list(replaced(list(_nodes(shape)), choices, set(), shapes, kept))
    nodes.sort(key=lambda n: not (n.op_type == "MatMulNBits" and n.input[1].removesuffix(".codes") in tables))
    read = {name for node in nodes for name in node.input}
    inputs, outputs = _values(shape)
    graph = helper.make_graph(nodes, "random", inputs, outputs, [i for i in kept if i.name in read])
    if cache == INT8:
        scale = np.full((shape.kv_heads, shape.head_dim), 0.1, np.float32)
        round_cache(graph, dict.fromkeys(range(shape.layers), (scale, scale)))
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / MODEL)
    (folder / CONFIG).write_text(
        json.dumps(_settings(shape, context, threads, batch), indent=2) + "\n", encoding="utf-8"
    )
    promised = sum(storage.unit_bytes(unit, subnet[unit.name]) for unit in spec.units)
    assert (folder / WEIGHTS).stat().st_size == promised + storage.float_bytes(spec, context)
    return folder


def _matrices(shape: Shape) -> Iterator[tuple[str, tuple[UnitSpec, int, int]]]:
    """By name in the graph: the unit, in_features and out_features."""
    for unit in shape.spec().units:
        found = storage.matrices(unit)
        if unit.is_table:
            names = [
                "model.embed_tokens.weight" if unit.role == EMBEDDING and not shape.tied else "lm_head.MatMul.weight"
            ]
        elif unit.role == "qkv":
            names = [f"model.layers.{unit.layer}.attn.qkv_proj.MatMul.weight"]
        else:
            part = "attn" if unit.role == "o" else "mlp"
            tails = [linear.name.rpartition(".")[2] for linear in unit.linears]
            names = [f"model.layers.{unit.layer}.{part}.{tail}.MatMul.weight" for tail in tails]
        yield from ((name, (unit, *size)) for name, size in zip(names, found, strict=True))


def _random(name: str, inputs: int, outputs: int, choice: Choice) -> Iterator[tuple[str, np.ndarray]]:
    """Codes, scales and zeros of its own for every matrix: ONNX Runtime keeps equal ones once."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    pool = rng.integers(0, 256, POOL_BYTES, np.uint8)
    blocks, block_bytes = inputs // choice.group_size, choice.group_size * choice.bits // 8
    yield f"{name}.codes", np.resize(pool, (outputs, blocks, block_bytes))
    yield f"{name}.scales", np.full((outputs, blocks), 0.01 + rng.random() * 1e-4, np.float32)
    if choice.format.symmetric:
        return
    zeros = np.resize(pool[::-1], (outputs, storage.zero_bytes(inputs, outputs, choice) // outputs))
    yield f"{name}.zeros", zeros


def _floats(shape: Shape, context: int) -> Iterator[tuple[str, np.ndarray]]:
    for layer in range(shape.layers):
        for norm in ("input", "post_attention"):
            yield f"model.layers.{layer}.{norm}_layernorm.weight", np.ones(shape.hidden, np.float32)
    yield f"model.layers.{shape.layers}.final_norm_layernorm.weight", np.ones(shape.hidden, np.float32)
    half = shape.head_dim // 2
    angles = np.outer(np.arange(context), 1e4 ** -(np.arange(half) / half)).astype(np.float32)
    yield from (("cos_cache", np.cos(angles)), ("sin_cache", np.sin(angles)))


def _nodes(shape: Shape) -> Iterator[Any]:
    from onnx import TensorProto, helper, numpy_helper

    def node(kind: str, path: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any) -> Any:
        domain = "com.microsoft" if kind in ("GroupQueryAttention", "SkipSimplifiedLayerNormalization") else ""
        return helper.make_node(kind, inputs, outputs or [f"{path}/output_0"], name=path, domain=domain, **attributes)

    def constant(name: str, value: Any) -> Any:
        tensor = numpy_helper.from_array(np.array(value, np.int64), name)
        return helper.make_node("Constant", [], [name], name=name.replace("constants", "constant_nodes"), value=tensor)

    def linear(path: str, source: str) -> Any:
        return node("MatMul", f"{path}/MatMul", [source, f"{path[1:].replace('/', '.')}.MatMul.weight"])

    yield constant(ONES, [1])
    yield node("ReduceSum", f"{MASK}/ReduceSum", ["attention_mask", ONES], keepdims=0)
    yield node("Sub", f"{MASK}/Sub", [f"{MASK}/ReduceSum/output_0", ONES])
    yield node("Cast", f"{MASK}/Sub/Cast", [f"{MASK}/Sub/output_0"], to=TensorProto.INT32)
    yield node("Shape", f"{MASK}/Shape", ["attention_mask"])
    yield constant(ONE, 1)
    yield node("Gather", f"{MASK}/Gather", [f"{MASK}/Shape/output_0", ONE], axis=0)
    yield node("Cast", f"{MASK}/Gather/Cast", [f"{MASK}/Gather/output_0"], to=TensorProto.INT32)
    table = "model.embed_tokens.weight"
    if shape.tied:
        yield node("Transpose", "/model/embed_tokens/Transpose", ["lm_head.MatMul.weight"], perm=[1, 0])
        table = "/model/embed_tokens/Transpose/output_0"
    yield node("Gather", "/model/embed_tokens/Gather", [table, "input_ids"])
    stream, added = "/model/embed_tokens/Gather/output_0", ""
    for i in range(shape.layers):
        path = f"/model/layers.{i}"
        attention, mlp, gqa = f"{path}/attn", f"{path}/mlp", f"{path}/attn/GroupQueryAttention"
        if i == 0:
            norm = [stream, f"model.layers.{i}.input_layernorm.weight"]
            found, first = [f"{path}/input_layernorm/output_0"], f"{path}/input_layernorm/LayerNorm"
            kind = "SimplifiedLayerNormalization"
            yield node(kind, first, norm, found, epsilon=EPSILON, axis=-1, stash_type=1)
        else:
            yield _skip(node, f"{path}/input_layernorm", stream, added, f"model.layers.{i}.input_layernorm.weight")
            stream = f"{path}/input_layernorm/output_3"
        yield linear(f"{attention}/qkv_proj", f"{path}/input_layernorm/output_0")
        cache = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        lengths = [f"{MASK}/Sub/Cast/output_0", f"{MASK}/Gather/Cast/output_0"]
        read = [f"{attention}/qkv_proj/MatMul/output_0", "", "", *cache, *lengths, "cos_cache", "sin_cache", "", "", ""]
        yield node(
            "GroupQueryAttention", gqa, read, [f"{gqa}/output_0", f"present.{i}.key", f"present.{i}.value"],
            num_heads=shape.heads, kv_num_heads=shape.kv_heads, scale=shape.head_dim**-0.5, local_window_size=-1,
            softcap=0.0, do_rotary=1, rotary_interleaved=0,
        )  # fmt: skip
        yield linear(f"{attention}/o_proj", f"{gqa}/output_0")
        after = f"{path}/post_attention_layernorm"
        yield _skip(
            node,
            after,
            stream,
            f"{attention}/o_proj/MatMul/output_0",
            f"model.layers.{i}.post_attention_layernorm.weight",
        )
        stream = f"{after}/output_3"
        yield linear(f"{mlp}/gate_proj", f"{after}/output_0")
        yield linear(f"{mlp}/up_proj", f"{after}/output_0")
        gate = f"{mlp}/gate_proj/MatMul/output_0"
        yield node("Sigmoid", f"{mlp}/act_fn/Sigmoid", [gate])
        yield node("Mul", f"{mlp}/act_fn/Mul", [gate, f"{mlp}/act_fn/Sigmoid/output_0"])
        yield node("Mul", f"{mlp}/Mul", [f"{mlp}/act_fn/Mul/output_0", f"{mlp}/up_proj/MatMul/output_0"])
        yield linear(f"{mlp}/down_proj", f"{mlp}/Mul/output_0")
        added = f"{mlp}/down_proj/MatMul/output_0"
    final = f"/model/layers.{shape.layers}/final_norm_layernorm"
    yield _skip(node, final, stream, added, f"{final[1:].replace('/', '.')}.weight", last=True)
    yield constant(LAST, -1)
    yield node("Gather", "/lm_head/prune/Gather", [f"{final}/output_0", LAST], axis=1)
    yield node("Unsqueeze", "/lm_head/prune/Unsqueeze", ["/lm_head/prune/Gather/output_0", ONES])
    head = ["/lm_head/prune/Unsqueeze/output_0", "lm_head.MatMul.weight"]
    yield node("MatMul", "/lm_head/MatMul", head, ["logits"])


def _skip(node: Any, path: str, stream: str, added: str, weight: str, last: bool = False) -> Any:
    """Adds to the residual stream and normalizes the sum; both are its outputs."""
    outputs = [f"{path}/output_0"] if last else [f"{path}/output_0", "", "", f"{path}/output_3"]
    inputs = [stream, added, weight]
    return node("SkipSimplifiedLayerNormalization", f"{path}/SkipLayerNorm", inputs, outputs, epsilon=EPSILON)


def _values(shape: Shape) -> tuple[list[Any], list[Any]]:
    from onnx import TensorProto, helper

    def cache(name: str, length: str) -> list[Any]:
        sizes: list[Any] = ["batch_size", shape.kv_heads, length, shape.head_dim]
        kinds = [(i, kind) for kind in ("key", "value") for i in range(shape.layers)]
        return [helper.make_tensor_value_info(f"{name}.{i}.{kind}", TensorProto.FLOAT, sizes) for i, kind in kinds]

    ids = [("input_ids", "sequence_length"), ("attention_mask", "total_sequence_length")]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch_size", length]) for n, length in ids]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", 1, shape.vocabulary])
    past, present = cache("past_key_values", "past_sequence_length"), cache("present", "total_sequence_length")
    return [*inputs, *past], [logits, *present]


def _settings(shape: Shape, context: int, threads: int | None, batch: int) -> dict[str, Any]:
    session: dict[str, Any] = {"log_id": "onnxruntime-genai", "provider_options": []}
    if threads:
        session["intra_op_num_threads"] = threads
    cache = {"key": "%d.key", "value": "%d.value"}
    decoder = {
        "session_options": session, "filename": MODEL, "head_size": shape.head_dim, "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers, "num_key_value_heads": shape.kv_heads,
        "inputs": {
            "input_ids": "input_ids", "attention_mask": "attention_mask",
            **{f"past_{kind}_names": f"past_key_values.{name}" for kind, name in cache.items()},
        },
        "outputs": {"logits": "logits", **{f"present_{kind}_names": f"present.{n}" for kind, n in cache.items()}},
    }  # fmt: skip
    search = {"max_length": context, "past_present_share_buffer": True}
    if batch == 1:
        search["chunk_size"] = costs.CHUNK_TOKENS
    model = {
        "type": "llama", "vocab_size": shape.vocabulary, "context_length": context, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2, "decoder": decoder,
    }  # fmt: skip
    return {"model": model, "search": search}
