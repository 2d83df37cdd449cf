"""The float graph that onnxruntime-genai's model builder makes of a model, with every weight matrix named.

The builder is run on a copy of the model whose weights are labels: the first two inputs of every row hold which matrix
the row belongs to and which row it is. Reading the labels back from the graph says exactly which rows of which linear
each product multiplies by, however the builder joined or split them, and nothing depends on how it names its nodes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from records.errors import InputError
from supernet.spec import ModelSpec

GRAPH = "graph.onnx"
SOURCES = "sources.json"
ASSETS = "assets"


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of one linear's weight."""

    linear: str
    start: int
    stop: int


@dataclass(frozen=True)
class Template:
    """A graph on disk whose weight matrices are empty, and what each of them is made of, by initializer name."""

    folder: Path
    sources: dict[str, tuple[Rows, ...]]

    def graph(self) -> Any:
        import onnx

        return onnx.load(self.folder / GRAPH)

    @property
    def assets(self) -> list[Path]:
        """Tokenizer files, chat template and genai_config.json."""
        return sorted((self.folder / ASSETS).iterdir())


def template_for(files: Any) -> Template:
    """The template of a supernet, from its cache or built now (about ten seconds for a small model)."""
    import onnxruntime_genai

    root = Path(files.path) / "cache" / f"onnxruntime-{onnxruntime_genai.__version__}"
    floats = {name: np.asarray(tensor, np.float32) for name, tensor in files.float_tensors().items()}
    folder = root / _key(Path(files.model_dir), floats)
    if not (folder / SOURCES).exists():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".template-", dir=root) as scratch:
            built = build(files.spec, Path(files.model_dir), floats, Path(scratch))
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(built, folder)
    sources = json.loads((folder / SOURCES).read_text())
    return Template(folder, {name: tuple(Rows(**rows) for rows in parts) for name, parts in sources.items()})


def _key(model_dir: Path, floats: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for path in sorted(model_dir.iterdir()):
        if path.is_file() and path.suffix != ".safetensors":
            digest.update(path.name.encode() + path.read_bytes())
    for name in sorted(floats):
        digest.update(name.encode() + floats[name].tobytes())
    return digest.hexdigest()[:16]


def build(spec: ModelSpec, model_dir: Path, floats: dict[str, np.ndarray], scratch: Path) -> Path:
    """Run the builder in `scratch`; the template's folder, inside it."""
    labelled, built, template = scratch / "labelled", scratch / "built", scratch / "template"
    linears = [linear for unit in spec.units for linear in unit.linears]
    write_labelled(spec, model_dir, floats, labelled)
    run_builder(labelled, built, scratch)

    import onnx

    model = onnx.load(built / "model.onnx")
    labels = {i.name: i for i in model.graph.initializer}
    sources: dict[str, tuple[Rows, ...]] = {}
    for node in model.graph.node:
        name = weight_of(node, labels)
        if name is None or name in sources:
            continue
        weight = onnx.numpy_helper.to_array(labels[name])
        by_row = weight[:, :2] if node.op_type == "Gather" else weight[:2].T
        sources[name] = read_labels(by_row, [linear.name for linear in linears], node.name)
    _check_complete(sources, spec)
    for name in sources:
        shape = list(labels[name].dims)
        labels[name].CopyFrom(onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=shape))

    template.mkdir()
    (template / ASSETS).mkdir()
    onnx.save(model, template / GRAPH)
    for path in built.iterdir():
        if not path.name.startswith("model.onnx"):
            shutil.copyfile(path, template / ASSETS / path.name)
    (template / SOURCES).write_text(json.dumps({n: [asdict(r) for r in parts] for n, parts in sources.items()}))
    return template


def write_labelled(spec: ModelSpec, model_dir: Path, floats: dict[str, np.ndarray], folder: Path) -> None:
    """The model's folder with labels for weights and its true float tensors."""
    from safetensors.numpy import save_file

    folder.mkdir()
    for path in model_dir.iterdir():
        if path.is_file() and not path.name.endswith((".safetensors", ".safetensors.index.json", ".bin")):
            shutil.copyfile(path, folder / path.name)
    tensors = dict(floats)
    for index, linear in enumerate(linear for unit in spec.units for linear in unit.linears):
        weight = np.zeros((linear.out_features, linear.in_features), np.float32)
        weight[:, 0] = index + 1
        weight[:, 1] = np.arange(linear.out_features)
        tensors[linear.name + ".weight"] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def run_builder(source: Path, out: Path, scratch: Path) -> None:
    """onnxruntime-genai's builder in its own process; its many lines go to a log that an error quotes the end of."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(out)]
    command += ["-p", "fp32", "-e", "cpu", "-c", str(scratch / "cache"), "--extra_options", "prune_lm_head=true"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=scratch)
    if done.returncode != 0 or not (out / "model.onnx").exists():
        log = Path(tempfile.gettempdir()) / "bitfleet-builder.log"
        log.write_text(done.stdout + done.stderr)
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"onnxruntime-genai's builder must accept the model, it said {last!r}; its log is {log}")


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
        if parts and parts[-1].linear == linear and parts[-1].stop == row:
            parts[-1] = Rows(linear, parts[-1].start, row + 1)
        else:
            parts.append(Rows(linear, int(row), int(row) + 1))
    return tuple(Rows(part.linear, int(part.start), int(part.stop)) for part in parts)


def _check_complete(sources: dict[str, tuple[Rows, ...]], spec: ModelSpec) -> None:
    """Every row of every linear must be in the graph exactly once."""
    found: dict[str, int] = {}
    for parts in sources.values():
        for rows in parts:
            found[rows.linear] = found.get(rows.linear, 0) + rows.stop - rows.start
    for unit in spec.units:
        for linear in unit.linears:
            if found.get(linear.name, 0) != linear.out_features:
                raise InputError(
                    f"every row of a linear must be in the graph once, got {found.get(linear.name, 0)} of "
                    f"{linear.out_features} for {linear.name}; this architecture cannot be exported to ONNX Runtime"
                )
