"""A subnet as ONNX: the template's float products become quantized ones, the weights one file that we lay out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from planner.runtimes.base import Progress
from planner.runtimes.onnxruntime import storage
from planner.runtimes.onnxruntime.packing import pack
from planner.runtimes.onnxruntime.template import Rows, Template, template_for
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
CONFIG = "genai_config.json"
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
    files: Any, subnet: Subnet, context: int, threads: int | None, folder: Path, progress: Progress | None = None
) -> None:
    """Write the graph, the weight file, genai_config.json and the tokenizer into the existing `folder`."""
    import onnx

    if progress:
        progress("building the graph", 0.0)
    template = template_for(files)
    model = template.graph()
    by_linear = {lin.name: (unit.name, subnet[unit.name]) for unit in files.spec.units for lin in unit.linears}
    floats = {i.name: i for i in model.graph.initializer if i.name not in template.sources}
    kept: list[Any] = []
    tables: dict[str, Choice] = {}
    with WeightFile(folder / WEIGHTS) as weights:
        for done, (name, parts) in enumerate(template.sources.items()):
            choice = _choice_of(parts, by_linear)
            tables[name] = choice
            kept += [weights.add(tensor, array) for tensor, array in quantized(files, name, parts, choice)]
            if progress:
                progress("writing weights", (done + 1) / len(template.sources))
        for name, tensor in floats.items():
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype != np.float32:
                kept.append(tensor)
                continue
            kept.append(weights.add(name, array[:context] if name in ("cos_cache", "sin_cache") else array, pad=False))
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    nodes = list(replaced(model.graph.node, tables, shapes, kept))
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    onnx.save(model, folder / MODEL)
    write_assets(template, context, threads, folder)
    check_size(files.spec, subnet, context, folder)


def _choice_of(parts: tuple[Rows, ...], by_linear: dict[str, tuple[str, Choice]]) -> Choice:
    units = {by_linear[rows.linear] for rows in parts}
    if len(units) != 1:
        names = ", ".join(sorted(name for name, _ in units))
        raise ValueError(f"a product must take its rows from one unit, the graph joins {names}")
    return units.pop()[1]


def quantized(files: Any, name: str, parts: tuple[Rows, ...], choice: Choice) -> Iterator[tuple[str, np.ndarray]]:
    """The codes, scales and zeros of one matrix, named after it."""
    folded = [files.folded(rows.linear, choice) for rows in parts]

    def joined(field: str) -> np.ndarray:
        return np.concatenate(
            [np.asarray(getattr(f, field))[rows.start : rows.stop] for f, rows in zip(folded, parts, strict=True)]
        )

    codes = joined("codes")
    outputs, inputs = codes.shape
    blocks = inputs // choice.group_size
    packed = pack(codes.astype(np.uint8, copy=False), choice.bits)
    yield f"{name}.codes", packed.reshape(outputs, blocks, choice.group_size * choice.bits // 8)
    yield f"{name}.scales", joined("scale").astype(np.float32, copy=False).reshape(outputs, blocks)
    yield f"{name}.zeros", pack(joined("zero").astype(np.uint8, copy=False).reshape(outputs, blocks), choice.bits)


def replaced(
    nodes: Any, choices: dict[str, Choice], shapes: dict[str, tuple[int, ...]], initializers: list[Any]
) -> Iterator[Any]:
    """The template's nodes with quantized products and lookups in place of the float ones.

    A tied model's graph looks tokens up in the transposed head; the transposition goes, both read the same tensors.
    """
    transposed = {
        node.output[0]: node.input[0] for node in nodes if node.op_type == "Transpose" and node.input[0] in choices
    }
    for node in nodes:
        if node.op_type == "Transpose" and node.input[0] in choices:
            continue
        if node.op_type == "MatMul" and node.input[1] in choices:
            inputs, outputs = shapes[node.input[1]]
            yield product(node, node.input[1], inputs, outputs, choices[node.input[1]])
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
        [node.input[0], f"{weight}.codes", f"{weight}.scales", f"{weight}.zeros"],
        list(node.output),
        name=node.name,
        domain="com.microsoft",
        bits=choice.bits,
        block_size=choice.group_size,
        K=inputs,
        N=outputs,
        accuracy_level=ACCURACY_LEVEL,
    )


def lookup(
    node: Any, weight: str, inputs: int, outputs: int, choices: dict[str, Choice], initializers: list[Any]
) -> Iterator[Any]:
    """GatherBlockQuantized wants the codes as a matrix where the product wants blocks: the same bytes, reshaped."""
    from onnx import helper, numpy_helper

    choice = choices[weight]
    shape = np.array([outputs, inputs * choice.bits // 8], np.int64)
    initializers.append(numpy_helper.from_array(shape, f"{weight}.shape"))
    rows = f"{weight}.rows"
    yield helper.make_node("Reshape", [f"{weight}.codes", f"{weight}.shape"], [rows], name=f"{node.name}/Rows")
    yield helper.make_node(
        "GatherBlockQuantized",
        [rows, node.input[1], f"{weight}.scales", f"{weight}.zeros"],
        list(node.output),
        name=node.name,
        domain="com.microsoft",
        bits=choice.bits,
        block_size=choice.group_size,
        gather_axis=0,
        quantize_axis=1,
    )


def write_assets(template: Template, context: int, threads: int | None, folder: Path) -> None:
    """Tokenizer and chat template as they are; the runtime's settings with the workload's context as the limit.

    onnxruntime-genai reserves the KV cache for `max_length` tokens when it starts: the limit is a memory promise too.
    """
    for path in template.assets:
        if path.name != CONFIG:
            shutil.copyfile(path, folder / path.name)
            continue
        config = json.loads(path.read_text())
        config["model"]["context_length"] = context
        config["search"]["max_length"] = context
        if threads:
            config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def check_size(spec: ModelSpec, subnet: Subnet, context: int, folder: Path) -> None:
    """The plan's bytes are a promise: a graph that needs others is an error here, not a surprise later."""
    promised = sum(storage.unit_bytes(unit, subnet[unit.name]) for unit in spec.units)
    promised += storage.float_bytes(spec, context)
    written = (folder / WEIGHTS).stat().st_size
    if written != promised:
        raise ValueError(
            f"the weight file must have the planned size, got {written} bytes and planned {promised}; "
            f"{spec.architecture} stores float tensors that bitfleet does not know of"
        )
