"""A subnet as ONNX: the template's float products become quantized ones, the weights one file that we lay out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np

from planner.runtimes.base import Progress
from planner.runtimes.caches import CacheType
from planner.runtimes.onnxruntime import costs, settings, storage
from planner.runtimes.onnxruntime.cache import CACHES, INT8
from planner.runtimes.onnxruntime.fit import fit, fix_head_size
from planner.runtimes.onnxruntime.graphs import template_for
from planner.runtimes.onnxruntime.packing import pack
from planner.runtimes.onnxruntime.scales import round_cache, scales_of
from planner.runtimes.onnxruntime.standin import facts_of
from planner.runtimes.onnxruntime.template import Rows, Vector
from planner.runtimes.source import PackageSource, WeightSource
from planner.runtimes.tokenizer_files import write_tokenizer
from records.errors import InputError
from supernet.space import Choice, Subnet
from supernet.spec import Channels, ModelSpec, UnitSpec
from supernet.ties import tied, together

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
CONFIG = settings.CONFIG
# Products take int8 activations: with float activations ("accuracy level 0") 2 and 8 bits are 100 times slower.
ACCURACY_LEVEL = 4


class WeightFile(AbstractContextManager["WeightFile"]):
    """Appends tensors to the weight file and describes each as an ONNX initializer that points into it."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._size = 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, name: str, array: np.ndarray, pad: bool = True) -> Any:
        import onnx

        tensor = onnx.TensorProto(name=name, dims=array.shape)
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", self._size), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        padding = storage.padded(array.nbytes) - array.nbytes if pad else 0
        self._file.write(np.ascontiguousarray(array).data)
        self._file.write(bytes(padding))
        self._size += array.nbytes + padding
        return tensor


def write_model(
    files: WeightSource, subnet: Subnet, context: int, threads: int | None, folder: Path,
    progress: Progress | None = None, batch: int = 1, cache: CacheType = CACHES[0],
) -> None:  # fmt: skip
    """Write the graph, the weight file, genai_config.json and the tokenizer into the existing `folder`."""
    import onnx
    from transformers import AutoConfig

    from supernet.mapped import give_back_pages

    spec = tied(files.spec, storage.ties(files.spec))
    whole = together(subnet, spec, "onnxruntime")
    if progress:
        progress("building the graph", 0.0)
    config = AutoConfig.from_pretrained(files.model_dir, trust_remote_code=files.trusted)
    template = template_for(spec, config)
    model, by_linear = template.model, linears_of(spec, whole)
    floats, parts = files.float_tensors(), {**template.weights, **template.vectors}
    kept: list[Any] = [i for i in model.graph.initializer if i.name not in parts]
    tables: dict[str, Choice] = {}
    readers: set[str] = set()
    heads: set[str] = set()
    with WeightFile(folder / WEIGHTS) as weights:
        for done, (name, rows) in enumerate(template.weights.items()):
            unit, choice = _choice_of(rows, by_linear)
            tables[name] = choice
            if unit.is_table:
                heads.add(f"{name}.codes")
            if unit.channels is not None and not unit.channels.parts:
                readers.add(name)
            if choice.kept != 0:
                arrays = quantized(files, name, rows, choice, unit.channels)
                kept += [weights.add(tensor, array) for tensor, array in arrays]
                give_back_pages()
            if progress:
                progress("writing weights", (done + 1) / len(template.weights))
        for name, vector in template.vectors.items():
            array = joined_vector(vector, floats, by_linear)
            if len(array):
                kept.append(weights.add(name, array, pad=False))
        nodes = list(replaced(model.graph.node, tables, readers, template.shapes, kept))
        if any(choice.kept is not None for choice in tables.values()):
            nodes = needed(nodes, {output.name for output in model.graph.output})
        # ONNX Runtime packs products in this order, each beside its mapped codes: the widest first.
        nodes.sort(key=lambda node: not (node.op_type == "MatMulNBits" and node.input[1] in heads))
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(kept)
        known = facts_of(config, files.rotaries())
        fit(model, known, spec.vocab_size, context, lambda n, array: weights.add(n, array, pad=False))
    fix_head_size(model.graph, spec.head_dim)
    if cache == INT8:  # of a whole supernet, since what it caches of its text is read
        if progress:
            progress("reading keys and values", 1.0)
        round_cache(model.graph, scales_of(cast(PackageSource, files), subnet))
    used = {name for node in model.graph.node for name in _reads(node)}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, folder / MODEL)
    write_tokenizer(files.model_dir, context, folder, files.trusted)
    chunk = costs.CHUNK_TOKENS if batch == 1 else None
    settings.write(spec, template.kind, model.graph, files.model_dir, context, chunk, threads, folder)
    check_size(spec, whole, context, folder)


def linears_of(spec: ModelSpec, subnet: Subnet) -> dict[str, tuple[UnitSpec, Choice]]:
    """The unit and its choice, by the name of each linear."""
    return {linear.name: (unit, subnet[unit.name]) for unit in spec.units for linear in unit.linears}


def joined_vector(vector: Vector, floats: Any, by_linear: dict[str, tuple[UnitSpec, Choice]]) -> np.ndarray:
    """Norms and biases are what they are; the bias of feed-forward channels loses those that its linear loses."""
    found = []
    for rows in vector.parts:
        array = np.asarray(floats[rows.tensor], np.float32)
        unit, choice = by_linear.get(rows.tensor.removesuffix(".bias"), (None, None))
        if unit is not None and choice is not None and choice.kept is not None and unit.channels is not None:
            spans = unit.channels.spans(choice.kept) if unit.channels.parts else ((0, len(array)),)
            array = np.concatenate([array[start:stop] for start, stop in spans])
        found.append(array)
    return np.concatenate(found) + np.float32(vector.offset)


def _choice_of(parts: tuple[Rows, ...], by_linear: dict[str, tuple[UnitSpec, Choice]]) -> tuple[UnitSpec, Choice]:
    units = {by_linear[rows.tensor] for rows in parts}
    if len(units) != 1:
        names = ", ".join(sorted(unit.name for unit, _ in units))
        raise InputError(f"a product must take its rows from one unit, the graph joins {names}")
    return units.pop()


def quantized(
    files: WeightSource, name: str, parts: tuple[Rows, ...], choice: Choice, channels: Channels | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """The codes, scales and, unless the format is symmetric, zeros of one matrix, named after it.

    A pruned choice takes the first rows or the first columns of what is stored. Gate and up are matrices of their own
    in the graph, also where the model stores them as one.
    """
    folded = [files.folded(rows.tensor, choice.whole) for rows in parts]
    makes = channels is not None and channels.parts > 0

    def joined(field: str, inputs: int = 1) -> np.ndarray:
        """`inputs` is how many of them a column of the field stands for."""
        columns = None if choice.kept is None or makes else choice.kept // inputs
        found = []
        for weight, rows in zip(folded, parts, strict=True):
            stop = rows.start + choice.kept if makes and choice.kept is not None else rows.stop
            found.append(np.asarray(getattr(weight, field))[rows.start : stop, :columns])
        return np.concatenate(found)

    codes = joined("codes")
    outputs, inputs = codes.shape
    blocks = inputs // choice.group_size
    packed = pack(codes.astype(np.uint8, copy=False), choice.bits)
    yield f"{name}.codes", packed.reshape(outputs, blocks, choice.group_size * choice.bits // 8)
    scale = joined("scale", choice.group_size)
    yield f"{name}.scales", scale.astype(np.float32, copy=False).reshape(outputs, blocks)
    if choice.format.symmetric:
        return
    zero = joined("zero", choice.group_size)
    yield f"{name}.zeros", pack(zero.astype(np.uint8, copy=False).reshape(outputs, blocks), choice.bits)


def replaced(
    nodes: Any, choices: dict[str, Choice], readers: set[str], shapes: dict[str, tuple[int, int]],
    initializers: list[Any],
) -> Iterator[Any]:  # fmt: skip
    """The template's nodes with quantized products and lookups in place of the float ones.

    `readers` are the weights whose inputs are feed-forward channels: these lose inputs where a block is pruned, what
    makes the channels loses outputs. Where none is left, the block adds 0, and `needed` drops the rest of it.

    A tied model's graph looks tokens up in the transposed head; the transposition goes, both read the same tensors.
    """
    transposed = {
        node.output[0]: node.input[0] for node in nodes if node.op_type == "Transpose" and node.input[0] in choices
    }
    for node in nodes:
        if node.op_type == "Transpose" and node.input[0] in choices:
            continue
        if node.op_type == "MatMul" and node.input[1] in choices:
            weight, kept = node.input[1], choices[node.input[1]].kept
            inputs, outputs = shapes[weight]
            if kept == 0:
                if weight in readers:
                    yield nothing(node, _block_input(node, nodes, choices), initializers)
                continue
            if kept is not None:
                inputs, outputs = (kept, outputs) if weight in readers else (inputs, kept)
            yield product(node, weight, inputs, outputs, choices[weight])
        elif node.op_type == "Gather" and node.input[0] in transposed:
            inputs, outputs = shapes[transposed[node.input[0]]]
            yield from lookup(node, transposed[node.input[0]], inputs, outputs, choices, initializers)
        elif node.op_type == "Gather" and node.input[0] in choices:
            outputs, inputs = shapes[node.input[0]]
            yield from lookup(node, node.input[0], inputs, outputs, choices, initializers)
        else:
            yield node


def product(node: Any, weight: str, inputs: int, outputs: int, choice: Choice) -> Any:
    from onnx import helper

    return helper.make_node(
        "MatMulNBits",
        [node.input[0], *(f"{weight}.{part}" for part in storage.parts(choice))],
        list(node.output),
        name=node.name,
        domain="com.microsoft",
        bits=choice.bits,
        block_size=choice.group_size,
        K=inputs,
        N=outputs,
        accuracy_level=ACCURACY_LEVEL,
    )


def _block_input(node: Any, nodes: Any, choices: dict[str, Choice]) -> str:
    """What the feed-forward block reads that ends in `node`."""
    source = {output: other for other in nodes for output in other.output}
    at = source[node.input[0]]
    while not (at.op_type == "MatMul" and at.input[1] in choices):
        at = source[at.input[0]]
    return str(at.input[0])


def nothing(node: Any, like: str, initializers: list[Any]) -> Any:
    """Zeros of the shape of `like` in place of a product: one multiplication for each hidden value, and the graph
    around a block that is gone stays as it is."""
    from onnx import helper, numpy_helper

    zero = f"{node.name}.zero"
    initializers.append(numpy_helper.from_array(np.array(0, np.float32), zero))
    return helper.make_node("Mul", [like, zero], list(node.output), name=node.name)


def needed(nodes: list[Any], outputs: set[str]) -> list[Any]:
    """The nodes that `outputs` depend on."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(filter(None, node.output)):
            wanted.update(_reads(node))
            kept.append(node)
    return kept[::-1]


def _reads(node: Any) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)


def lookup(
    node: Any, weight: str, inputs: int, outputs: int, choices: dict[str, Choice], initializers: list[Any]
) -> Iterator[Any]:
    """GatherBlockQuantized wants the codes as a matrix where the product wants blocks: the same bytes in the file, with
    a second name. A Reshape would be done while loading, and leave a copy of the table."""
    import onnx
    from onnx import helper

    choice, rows = choices[weight], f"{weight}.rows"
    _, *sides = storage.parts(choice)
    tensor = onnx.TensorProto()
    tensor.CopyFrom(next(i for i in initializers if i.name == f"{weight}.codes"))
    tensor.name = rows
    tensor.dims[:] = [outputs, inputs * choice.bits // 8]
    initializers.append(tensor)
    yield helper.make_node(
        "GatherBlockQuantized",
        [rows, node.input[1], *(f"{weight}.{side}" for side in sides)],
        list(node.output),
        name=node.name,
        domain="com.microsoft",
        bits=choice.bits,
        block_size=choice.group_size,
        gather_axis=0,
        quantize_axis=1,
    )


def check_size(spec: ModelSpec, subnet: Subnet, context: int, folder: Path) -> None:
    """The plan's bytes are a promise: a graph that needs others is an error here, not a surprise later."""
    promised = sum(storage.unit_bytes(unit, subnet[unit.name]) for unit in spec.units)
    promised += storage.float_bytes(spec, context)
    written = (folder / WEIGHTS).stat().st_size
    if written != promised:
        raise InputError(
            f"the weight file must have the planned size, got {written} bytes and planned {promised}; "
            f"{spec.architecture} stores float tensors that bitfleet does not know of"
        )
