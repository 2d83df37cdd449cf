"""llama.cpp's own quantized files of a model: what rivals of a supernet's files are made by, in the run that compares.

As its users make them: a file of floats, an importance matrix (what `llama-imatrix` collects: the mean square of each
input of each matrix, here by hooks on the full model), and `llama_model_quantize` of a build of llama.cpp. The wheel
that bitfleet runs packages with leaves that function out, so the library comes from an npm package:

    npm install --prefix FOLDER @node-llama-cpp/linux-x64@3.22.1

with FOLDER bitfleet's cache (`~/.cache/bitfleet`), or any and `--quantizer` the path of its libllama.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planner.runtimes.child import installed
from planner.runtimes.llamacpp import metadata, tensors
from planner.runtimes.llamacpp.export import in_pairs
from planner.runtimes.llamacpp.header import head, padded
from planner.runtimes.llamacpp.serving import WEIGHTS, Serving
from records.cache import cache_dir
from supernet.model import hidden_states, removed_after
from supernet.spec import ModelSpec

PACKAGE, VERSION = "@node-llama-cpp/linux-x64", "3.22.1"
WORKER = Path(__file__).with_name("gguf_quantize.py")
THREADS = 2
IMPORTANCE_WINDOWS, IMPORTANCE_TOKENS = 64, 512

# Numbers of the types of files, and of tensors, by the names that llama-quantize has for them.
FILE_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13,
    "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "Q2_K_S": 21,
    "IQ3_XS": 22, "IQ3_XXS": 23, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29, "IQ4_XS": 30,
    "Q2_0": 41,
}  # fmt: skip
TENSOR_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
    "IQ4_NL": 20, "IQ3_S": 21, "IQ4_XS": 23,
}  # fmt: skip


@dataclass(frozen=True)
class Own:
    """How one file is made: `type` as llama-quantize names it, and the types that its user sets for the tables."""

    type: str
    embedding: str | None = None
    output: str | None = None

    @property
    def name(self) -> str:
        tables = {"embedding": self.embedding, "head": self.output}
        return " ".join([self.type, *(f"{table}={kind}" for table, kind in tables.items() if kind)])

    @property
    def folder(self) -> str:
        return "-".join(filter(None, (self.type, self.embedding, self.output)))

    @classmethod
    def parse(cls, text: str) -> Own:
        """`TYPE`, or `TYPE:EMBEDDING`, or `TYPE:EMBEDDING:HEAD`."""
        kind, *tables = text.split(":")
        if kind not in FILE_TYPES or len(tables) > 2 or any(table not in TENSOR_TYPES for table in tables):
            known = f"{', '.join(FILE_TYPES)}; tables: {', '.join(TENSOR_TYPES)}"
            raise SystemExit(f"error: a file must be TYPE[:EMBEDDING[:HEAD]], got {text}; types: {known}")
        return cls(kind, *tables)


def quantizer_library(given: Path | None = None) -> Path:
    """The libllama that quantizes; leaves with what to install where there is none."""
    folders = [cache_dir() / "node_modules" / PACKAGE / "bins" / "linux-x64"]
    found = [given] if given else [path for folder in folders for path in sorted(folder.glob("libllama.v*.so"))]
    if found and found[0].is_file():
        return found[0].resolve()
    command = f"npm install --prefix {cache_dir()} {PACKAGE}@{VERSION}"
    raise SystemExit(f"error: llama.cpp's quantizer is not here; run: {command}")


def write_floats(model: Any, spec: ModelSpec, model_dir: Path, out: Path) -> None:
    """The full model as a GGUF file of float32. `model_dir` holds its config and tokenizer."""
    found = tensors.tensors_of(spec)
    if made := [tensor.name for tensor in found if not tensor.source]:
        raise SystemExit(f"error: this benchmark writes models with plain rotary embeddings, this one has {made[0]}")
    values = dict(model.named_parameters())
    with out.open("wb") as file:
        file.write(head(metadata.entries(spec, model_dir), [tensor.stored(None) for tensor in found]))
        for tensor in found:
            rows = values[tensor.source].detach().float().numpy() + np.float32(tensor.offset)
            data = np.ascontiguousarray(in_pairs(rows, tensor.heads) if tensor.heads else rows, "<f4").tobytes()
            file.write(data)
            file.write(bytes(padded(len(data)) - len(data)))


@torch.no_grad()
def importance(model: Any, spec: ModelSpec, windows: Tensor) -> dict[str, NDArray[np.float32]]:
    """The mean square of each input `(in_features,)` of every matrix in the layers, by GGUF's names, as `llama-imatrix`
    has it: it leaves out the embedding and the head."""
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def add(module: Any, inputs: tuple[Tensor, ...]) -> None:
            squares = inputs[0].flatten(0, -2).square().sum(0).double()
            sums[name] = sums.get(name, torch.zeros_like(squares)) + squares

        return add

    linears = {t.name: t.linears[0].name for t in tensors.tensors_of(spec) if t.linears and t.unit is not None
               and t.unit.layer is not None and t.name.endswith(".weight")}  # fmt: skip
    hooks = [model.get_submodule(ours).register_forward_pre_hook(hook(name)) for name, ours in linears.items()]
    with removed_after(hooks):
        for batch in windows.split(4):
            hidden_states(model, batch)
    return {name: (total / windows.numel()).float().numpy() for name, total in sums.items()}


@dataclass(frozen=True)
class Quantizer:
    """llama.cpp's own: `floats` is the full model's file, `weights` the file of its importance matrix."""

    library: Path
    floats: Path
    weights: Path | None

    @classmethod
    def of(cls, library: Path, full: Any, spec: ModelSpec, windows: Tensor, folder: Path) -> Quantizer:
        """With files of the full model in the existing `folder`."""
        description, floats, weights = folder / "description", folder / "floats.gguf", folder / "importance.npz"
        full.save_description(description)
        write_floats(full.model, spec, description, floats)
        np.savez(weights, **importance(full.model, spec, windows))  # type: ignore[arg-type]
        return cls(library, floats, weights)

    def make(self, own: Own, package: Path, context: int) -> Path:
        """A package with the file, in the new folder `package`, which is returned. It is served as ours are."""
        package.mkdir(parents=True)
        asked = {
            "library": str(self.library), "libraries": installed(("numpy",)), "threads": THREADS,
            "source": str(self.floats.resolve()), "out": str((package / WEIGHTS).resolve()),
            "type": FILE_TYPES[own.type], "importance": str(self.weights.resolve()) if self.weights else None,
            "embedding": TENSOR_TYPES.get(own.embedding or ""), "output": TENSOR_TYPES.get(own.output or ""),
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            request = Path(scratch) / "request.json"
            request.write_text(json.dumps(asked), encoding="utf-8")
            done = subprocess.run([sys.executable, "-I", str(WORKER), str(request)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"error: llama.cpp made no {own.name}: {done.stderr.strip()}")
        Serving(context, None, ()).save(package)
        return package
