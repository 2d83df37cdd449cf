"""The whole making of a supernet: model and text in, a finished folder out. What `bitfleet train` runs.

Three stages, each from disk to disk: prepare, fit, finish. A run that was stopped goes on from what the last of them
left. Under `accelerate launch` the main process prepares and finishes, and all of them train.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from supernet.build import Supernet
from supernet.checkpoint import SUPERNET, SupernetFiles, open_supernet
from supernet.finish import finish
from supernet.fit import fit
from supernet.grids import QuantizedWeight
from supernet.loading import load_model
from supernet.prepare import as_prepared, home, prepare
from supernet.progress import Progress, silent
from supernet.recipe import Recipe
from supernet.shard import Part, fsdp_plugin, scattered

PATIENCE = timedelta(days=7)  # the other processes wait while the main one prepares and finishes


def create(source: str, out: Path, recipe: Recipe, resume: bool = False, progress: Progress = silent) -> SupernetFiles:
    """Make the supernet of the model `source` in the folder `out`, or go on with one that was stopped.

    Going on uses the recipe in the folder. ValueError where `out` holds something else, a finished supernet, or an
    unfinished one without `resume`.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    started = (out / SUPERNET).exists()
    if not resume:
        _refuse_used(out, started)
    if started and open_supernet(out, unfinished=True).finished:
        raise ValueError(f"the supernet {out} is finished; use it, or train another with a new --out")
    report = progress if accelerator.is_main_process else silent
    loaded = load_model(source, recipe.trust_remote_code)
    model, tokenizer = loaded.model, loaded.tokenizer
    prepares = not started and accelerator.is_main_process
    if prepares:
        model.to(home(model, accelerator.device))
        prepare(source, model, tokenizer, out, recipe, accelerator.device, report)
    accelerator.wait_for_everyone()
    files = open_supernet(out, unfinished=True)
    if files.info.get("source") != source and started:
        raise ValueError(f"{out} was begun from {files.info.get('source')}, got {source}; give the same model")
    trust = recipe.trust_remote_code
    recipe = Recipe.from_json(files.info["recipe"])
    if not prepares:
        as_prepared(model, files)
    supernet = files.load(trust, _part(accelerator))
    trainer = fit(files, model, supernet, recipe, accelerator, report)
    if accelerator.is_main_process:
        model, supernet = _whole(source, files, model, supernet, trust, accelerator)
        files = finish(files, model, tokenizer, supernet, recipe, trainer, report)
    accelerator.wait_for_everyone()
    return files if accelerator.is_main_process else open_supernet(out)


def _refuse_used(out: Path, started: bool) -> None:
    if started:
        raise ValueError(f"{out} already holds a supernet; go on with --resume, or give a new --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is in use and holds no supernet; give a new or an empty folder as --out")


def _part(accelerator: Any) -> Callable[[QuantizedWeight], Part] | None:
    """What this process keeps of a stored weight: None where that is all of it."""
    if fsdp_plugin(accelerator) is None:
        return None
    return partial(scattered, process=accelerator.process_index, processes=accelerator.num_processes)


def _whole(
    source: str, files: SupernetFiles, model: Any, supernet: Supernet, trust: bool, accelerator: Any
) -> tuple[Any, Supernet]:
    """The full model in float32 and the supernet with all of its codes, as they were before training took parts."""
    sharded = fsdp_plugin(accelerator) is not None
    if sharded or model.dtype != torch.float32:
        model = load_model(source, trust).model
        as_prepared(model, files)
        model.to(home(model, accelerator.device))
    if sharded:
        again = files.load(trust)
        for name, matrix in again.matrices.items():
            matrix.adapters = supernet.matrices[name].adapters
        supernet = again
    supernet.model.to(model.device)
    return model, supernet
