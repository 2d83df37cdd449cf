"""Templates that were built before, in the user's cache under a hash of all that they follow from.

The cache is optional, and what lies in it is read only if it is what was written. Nothing of it comes from a supernet.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from planner.runtimes.onnxruntime import standin
from planner.runtimes.onnxruntime.template import Rows, Template, Vector, build
from records.atomic import new_folder
from records.cache import cache_dir
from supernet.spec import ModelSpec

FORMAT = 2
GRAPH, TEMPLATE = "graph.onnx", "template.json"
GREATEST_BYTES = 2**28  # of a graph without tensors


def template_for(spec: ModelSpec, config: Any) -> Template:
    """The template of a model, from the cache or built now (about ten seconds)."""
    folder = cache_dir() / "graphs" / key_of(spec, config)
    found = read(folder)
    if found is not None:
        return found
    with tempfile.TemporaryDirectory(prefix="bitfleet-graph-") as scratch:
        made = build(spec, config, Path(scratch))
    try:
        with new_folder(folder) as new:
            write(made, new)
    except OSError:  # a full or a read-only cache: the next export builds again
        pass
    return made


def key_of(spec: ModelSpec, config: Any) -> str:
    """A hash of what the builder is told, and of the model's shapes."""
    told = standin.plain_config(config).to_dict()
    shapes = [asdict(unit) for unit in spec.units]
    versions = [version(name) for name in ("onnxruntime-genai", "transformers")]
    text = json.dumps([FORMAT, versions, spec.architecture, told, shapes, spec.float_parameters], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write(template: Template, folder: Path) -> None:
    graph = template.model.SerializeToString(deterministic=True)
    (folder / GRAPH).write_bytes(graph)
    index = {
        "sha256": hashlib.sha256(graph).hexdigest(),
        "kind": template.kind,
        "weights": {name: [asdict(rows) for rows in parts] for name, parts in template.weights.items()},
        "vectors": {name: asdict(vector) for name, vector in template.vectors.items()},
        "shapes": template.shapes,
    }
    (folder / TEMPLATE).write_text(json.dumps(index), encoding="utf-8")


def read(folder: Path) -> Template | None:
    """The template in `folder`; None where there is none, or not what was written there."""
    import onnx

    try:
        index = json.loads((folder / TEMPLATE).read_text(encoding="utf-8"))
        if (folder / GRAPH).stat().st_size > GREATEST_BYTES:
            return None
        graph = (folder / GRAPH).read_bytes()
        if hashlib.sha256(graph).hexdigest() != index["sha256"]:
            return None
        return Template(
            onnx.load_from_string(graph),
            index["kind"],
            {name: _rows(parts) for name, parts in index["weights"].items()},
            {name: Vector(_rows(found["parts"]), found["offset"]) for name, found in index["vectors"].items()},
            {name: (inputs, outputs) for name, (inputs, outputs) in index["shapes"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _rows(parts: Any) -> tuple[Rows, ...]:
    return tuple(Rows(**rows) for rows in parts)
