"""The float graph that onnxruntime-genai's model builder makes of a model, with every tensor named.

The builder is run on a stand-in for the model: the same layers with a small vocabulary and narrow feed-forward blocks,
whose weights are labels. The first two inputs of every row of a matrix hold which matrix the row belongs to and which
row it is; every value of a vector holds which vector it is of. Reading the labels back from the graph says exactly
which rows of which linear each product multiplies by, however the builder joined or split them, and nothing depends on
how it names its nodes. So a template depends on the model's config alone.

What the builder decides from a config and does not always decide as the model's own code does, is taken from it: the
stand-in has plain rotary embeddings and no windows, `facts` has the model's, and `export` writes them into the graph.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from planner.runtimes.onnxruntime import standin
from planner.runtimes.onnxruntime.standin import Standin
from records.child import run_child
from records.errors import InputError
from supernet.spec import ModelSpec

BUILDER = "onnxruntime_genai.models.builder"


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of one linear's weight, or values of a vector, which is `tensor` by name."""

    tensor: str
    start: int
    stop: int


@dataclass(frozen=True)
class Vector:
    """A vector of the graph: the parts that it is joined of, and what the graph adds to them (Gemma's norms: 1)."""

    parts: tuple[Rows, ...]
    offset: float


@dataclass(frozen=True)
class Template:
    """A graph whose tensors are empty, and what each of them is made of, by initializer name.

    `kind` is what onnxruntime-genai calls the architecture; `shapes` are those of the weights in the graph's products.
    """

    model: Any
    kind: str
    weights: dict[str, tuple[Rows, ...]]
    vectors: dict[str, Vector]
    shapes: dict[str, tuple[int, int]]


def build(spec: ModelSpec, config: Any, scratch: Path) -> Template:
    """Run the builder in the existing folder `scratch`; about ten seconds, most of them imports."""
    import onnx

    made = standin.write(spec, config, scratch / "labelled")
    run_builder(scratch / "labelled", scratch / "built", scratch)
    model = onnx.load(scratch / "built" / "model.onnx")
    labels = {i.name: i for i in model.graph.initializer}
    weights: dict[str, tuple[Rows, ...]] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for node in model.graph.node:
        name = weight_of(node, labels)
        if name is None or name in weights:
            continue
        weight = onnx.numpy_helper.to_array(labels[name])
        is_table = node.op_type == "Gather"
        found = read_labels(weight[:, :2] if is_table else weight[:2].T, made.linears, node.name)
        weights[name] = tuple(scaled(rows, made) for rows in found)
        inputs = made.inputs[weights[name][0].tensor]
        outputs = sum(rows.stop - rows.start for rows in weights[name])
        shapes[name] = (outputs, inputs) if is_table else (inputs, outputs)
    _check_complete(weights, spec)
    vectors = {name: vector for name, i in labels.items() if (vector := read_vector(i, made)) is not None}
    for name in labels.keys() - weights.keys() - vectors.keys():
        _widen(labels[name], made.hidden)
    for name in (*weights, *vectors):
        labels[name].CopyFrom(onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT))
    del model.graph.value_info[:]  # shapes between the products are the stand-in's
    # The builder adds the commit of whatever repository it happens to be installed in.
    model.producer_version = version("onnxruntime-genai")
    return Template(model, standin.kind_of(scratch / "built"), weights, vectors, shapes)


def run_builder(source: Path, out: Path, scratch: Path) -> None:
    """onnxruntime-genai's builder in its own process, which sees neither the current folder nor its modules; its many
    lines go to a log that an error quotes the end of."""
    command = [sys.executable, "-P", "-m", BUILDER, "-i", str(source), "-o", str(out), "-p", "fp32", "-e", "cpu"]
    command += ["-c", str(scratch / "cache"), "--extra_options", "prune_lm_head=true"]
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(libraries)}
    done = run_child(command, text=True, env=environment, cwd=scratch)
    if done.returncode != 0 or not (out / "model.onnx").exists():
        with tempfile.NamedTemporaryFile("w", prefix="bitfleet-builder-", suffix=".log", delete=False) as log:
            log.write(done.stdout + done.stderr)
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"onnxruntime-genai's builder must accept the model, it said {last!r}; its log is {log.name}")


def weight_of(node: Any, initializers: dict[str, Any]) -> str | None:
    """The weight matrix that a node multiplies by or looks up in, None for every other node."""
    if node.op_type == "MatMul":
        name = node.input[1]
    elif node.op_type == "Gather":
        name = node.input[0]
    else:
        return None
    return name if name in initializers and len(initializers[name].dims) == 2 else None


def read_labels(labels: np.ndarray, linears: list[str], node: str) -> tuple[Rows, ...]:
    """Runs of consecutive rows of one linear, from `labels` of shape [rows, 2]."""
    parts: list[Rows] = []
    for index, row in labels.astype(np.int64):
        if not 1 <= index <= len(linears):
            raise InputError(f"every weight matrix of the graph must be one of the model's linears, {node} is not")
        linear = linears[index - 1]
        if parts and parts[-1].tensor == linear and parts[-1].stop == row:
            parts[-1] = Rows(linear, parts[-1].start, row + 1)
        else:
            parts.append(Rows(linear, int(row), int(row) + 1))
    return tuple(Rows(part.tensor, int(part.start), int(part.stop)) for part in parts)


def scaled(rows: Rows, made: Standin) -> Rows:
    """The model's rows for the stand-in's, whose feed-forward blocks and tables are shorter."""
    small, true = made.sizes[rows.tensor]
    return Rows(rows.tensor, rows.start * true // small, rows.stop * true // small)


def read_vector(initializer: Any, made: Standin) -> Vector | None:
    """What a vector is made of; None for a tensor of another shape and for constants of the builder's own."""
    import onnx

    if len(initializer.dims) != 1 or initializer.data_type != onnx.TensorProto.FLOAT:
        return None
    values = onnx.numpy_helper.to_array(initializer)
    numbers, offset = np.divmod(values, standin.VECTOR_STEP)
    if not len(values) or (numbers < 1).any() or len(set(offset)) != 1:
        return None
    starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
    parts = []
    for start, stop in zip(starts, starts[1:], strict=False):
        name = made.vectors[int(numbers[start]) - 1]
        small, true = made.sizes[name]
        if stop - start != small:
            raise InputError(f"a vector of the model must be whole in the graph, {initializer.name} splits {name}")
        parts.append(Rows(name, 0, true))
    return Vector(tuple(parts), float(offset[0]))


def _widen(initializer: Any, hidden: tuple[int, int]) -> None:
    """A vector of the builder's own, as long as the model's hidden size: OLMo's norms have no weights but ones."""
    import onnx

    small, true = hidden
    if list(initializer.dims) != [small] or initializer.data_type != onnx.TensorProto.FLOAT:
        return
    values = set(onnx.numpy_helper.to_array(initializer))
    if len(values) != 1:
        raise InputError(f"a vector of the builder's own must hold one value, {initializer.name} has {len(values)}")
    whole = np.full(true, values.pop(), np.float32)
    initializer.CopyFrom(onnx.numpy_helper.from_array(whole, initializer.name))


def _check_complete(sources: dict[str, tuple[Rows, ...]], spec: ModelSpec) -> None:
    """Every row of every linear must be in the graph exactly once."""
    found: dict[str, int] = {}
    for parts in sources.values():
        for rows in parts:
            found[rows.tensor] = found.get(rows.tensor, 0) + rows.stop - rows.start
    for unit in spec.units:
        for linear in unit.linears:
            if found.get(linear.name, 0) != linear.out_features:
                raise InputError(
                    f"every row of a linear must be in the graph once, got {found.get(linear.name, 0)} of "
                    f"{linear.out_features} for {linear.name}; this architecture cannot be exported to ONNX Runtime"
                )
