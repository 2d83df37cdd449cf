"""A supernet of few blocks made one of many, the same blocks over and over: what it says is worth nothing, what it
costs to plan, export and run is that of a model as deep.

Codes of 32 blocks of a 7B model take an hour and more to find, and copying them takes a minute. Of the proof the first
windows stay, and one token of each continuation: an export computes the others at some TFLOP each, in the same memory.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

WINDOWS = 4
LAYER = re.compile(r"(?<=\.layers\.)\d+")


def repeat_blocks(source: Path, out: Path, layers: int) -> None:
    """Write the finished supernet `source` into the new folder `out`, with `layers` blocks."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from supernet.checkpoint import CODES, FLOATS, SUPERNET, fingerprint_of, hashes_of, open_supernet, save_index
    from supernet.evidence import PROOF
    from supernet.files import write_tensors
    from supernet.mapped import MappedTensors
    from supernet.model import spec_of_model
    from supernet.recipe import Recipe
    from supernet.sensitivity_table import SENSITIVITY_FILE

    files = open_supernet(source)
    alone = (CODES, FLOATS, PROOF, SUPERNET, SENSITIVITY_FILE)
    shutil.copytree(source, out, ignore=lambda folder, names: [name for name in names if name in alone])
    config = AutoConfig.from_pretrained(out / "model")
    config.num_hidden_layers = layers
    config.save_pretrained(out / "model")
    with torch.device("meta"):
        spec = spec_of_model(AutoModelForCausalLM.from_config(config), files.spec.name)
    for name in (CODES, FLOATS):
        mapped = MappedTensors(source / name)
        write_tensors(out / name, deeper(mapped.keys(), files.spec.num_layers, layers, mapped.get_tensor))
    write_tensors(out / PROOF, shorter(MappedTensors(source / PROOF)))
    hashes = hashes_of(out, tuple(files.hashes))
    table = json.loads((source / SENSITIVITY_FILE).read_text())
    table["units"] = deeper(table["units"], files.spec.num_layers, layers, table["units"].__getitem__)
    table["supernet"] = fingerprint_of(hashes)
    (out / SENSITIVITY_FILE).write_text(json.dumps(table))
    save_index(out, spec, Recipe.from_json(files.info["recipe"]).space(spec), files.info, hashes)


def deeper(names: Iterable[str], few: int, many: int, value: Callable[[str], Any]) -> dict[str, Any]:
    """`value` of each name; a name of a block's stands for those of every `few`th block after it, up to `many`."""
    found = {}
    for name in names:
        layer = LAYER.search(name)
        numbers = range(int(layer[0]), many, few) if layer else (0,)
        found |= {LAYER.sub(str(number), name, count=1): value(name) for number in numbers}
    return found


def shorter(proof: Any) -> dict[str, Any]:
    """The tensors of a proof with its first `WINDOWS` alone."""
    found = {name: proof.get_tensor(name) for name in proof.keys()}  # noqa: SIM118
    found["lengths"] = found["lengths"][:WINDOWS]
    positions = int(found["lengths"].sum())
    for name in ("tokens", "model.ids", "model.log_probs", "model.rest"):
        found[name] = found[name][:positions]
    return found | {name: found[name][:, :1] for name in ("continued.tokens", "continued.margins")}
