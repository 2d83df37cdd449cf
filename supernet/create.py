"""The whole making of a supernet: model and text in, a finished folder out. What `bitfleet train` runs.

Three stages, each from disk to disk: prepare, fit, finish. A run that was stopped goes on from what the last of them
left. Under `accelerate launch` the main process prepares and finishes, and all of them train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from records.errors import InputError
from records.lock import locked
from supernet.blocks import give_back_after_blocks
from supernet.build import Supernet
from supernet.checkpoint import SUPERNET, SupernetFiles, open_supernet
from supernet.clock import Clock
from supernet.exact import kept_dtype
from supernet.finish import finish
from supernet.fit import fit
from supernet.folder import begun_start, refuse_used, remove_begun_start, remove_unfinished
from supernet.grids import QuantizedWeight
from supernet.loading import describe, load_model
from supernet.model import refuse_checkpointing
from supernet.prepare import as_prepared, check_same, home, prepare, stage_costs
from supernet.progress import Progress, silent
from supernet.recipe import AUTO, Recipe
from supernet.shard import Part, fsdp_plugin, scattered
from supernet.streaming import as_streamed

PATIENCE = timedelta(days=7)  # the other processes wait while the main one prepares and finishes


def create(
    source: str, out: Path, recipe: Recipe, resume: bool = False, progress: Progress = silent,
    typed: Mapping[str, str] | None = None, waiting: Callable[[str], None] | None = None, streamed: bool = False,
) -> SupernetFiles:  # fmt: skip
    """Make the supernet of the model `source` in the folder `out`, or go on with one that was stopped.

    Going on uses the recipe in the folder. InputError where it differs in one of the fields that `typed` gives the
    options of, where `out` holds something else, a finished supernet or an unfinished one without `resume`, and where
    another training is at work in it. With `waiting` that one is waited for, which is told to it in a line, and what
    another made is returned, also where it was finished just before.

    The weights of a model that is `streamed` stay in its files (`supernet.streaming`): the supernet is the same.
    InputError where the recipe needs them all at once.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    source = resolved(source)
    data, eval_text = (text and resolved(text) for text in (recipe.data, recipe.eval_text))
    recipe = replace(recipe, data=data, eval_text=eval_text)
    if not accelerator.is_main_process:
        return _stages(source, out, recipe, silent, accelerator)
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out, "another training", waiting):
        started = (out / SUPERNET).exists()
        trust = recipe.trust_remote_code
        if waiting and started and open_supernet(out, True, trust).finished:
            return open_supernet(out, trust_remote_code=trust)
        preparing = None if started else begun_start(out)
        if started:
            _check_resumable(out, recipe, resume, typed)
        elif preparing is not None:
            recipe, streamed = _going_on(out, preparing, source, recipe, resume, typed), True
        else:
            refuse_used(out)
        return _stages(source, out, recipe, progress, accelerator, streamed)


def resolved(source: str) -> str:
    """A local path as it is from every folder; names of the hub as they are."""
    return str(Path(source).resolve()) if Path(source).is_file() or Path(source).is_dir() else source


def _check_resumable(out: Path, recipe: Recipe, resume: bool, typed: Mapping[str, str] | None) -> None:
    files = open_supernet(out, True, recipe.trust_remote_code)
    if files.finished:
        remove_unfinished(files)  # whoever finished may have been killed before
    if files.finished and resume:
        raise InputError(f"the supernet {out} is finished; use it, or train another with a new --out")
    if not resume:
        raise InputError(f"{out} already holds a supernet; go on with --resume, or give a new --out")
    _check_typed(out, Recipe.from_json(files.info["recipe"]), recipe, typed)


def _going_on(
    out: Path, begun: Mapping[str, Any], source: str, recipe: Recipe, resume: bool, typed: Mapping[str, str] | None
) -> Recipe:
    """The recipe of a start that was stopped while it was made from a model's files."""
    if not resume:
        raise InputError(f"{out} holds a start that was stopped; go on with --resume, or give a new --out")
    if begun["source"] != source:
        raise InputError(f"{out} was begun from another model, {begun['source']}, than {source}; give the same model")
    stored = Recipe.from_json(begun["recipe"])
    _check_typed(out, stored, recipe, typed)
    return stored


def _check_typed(out: Path, begun: Recipe, recipe: Recipe, typed: Mapping[str, str] | None) -> None:
    for name, option in (typed or {}).items():
        asked, stored = getattr(recipe, name), getattr(begun, name)
        if asked not in (stored, AUTO):
            raise InputError(
                f"{option} must be {_shown(stored)}, as the training in {out} was begun with, got {_shown(asked)}; "
                "leave it out, or train into a new --out"
            )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _stages(
    source: str, out: Path, recipe: Recipe, report: Progress, accelerator: Any, streamed: bool = False
) -> SupernetFiles:
    """Prepare, fit, finish: those of them that are still to be done."""
    started = (out / SUPERNET).exists()
    trust = recipe.trust_remote_code
    if started:  # the minutes and steps that it was begun with share out what is still to come
        recipe = Recipe.from_json(open_supernet(out, True, trust).info["recipe"])
    if streamed and accelerator.num_processes > 1:
        raise InputError("a model that stays in its files is quantized by one process; start one, without a launcher")
    recipe = as_streamed(recipe) if streamed else recipe
    clock = Clock(None if recipe.steps else recipe.minutes)
    report = clock.showing(report)
    report("load model", 0, 1)
    config, spec = describe(source, trust)
    recipe.space(spec)  # what it refuses, it refuses before a weight is read
    dtype = kept_dtype(config, accelerator.device)
    loaded = load_model(source, trust, dtype, streamed)
    model, tokenizer = loaded.model, loaded.tokenizer
    if recipe.checkpointing:
        refuse_checkpointing(model)
    prepares = not started and accelerator.is_main_process
    if prepares:
        model.to(home(model, accelerator.device))
        prepare(source, loaded, out, recipe, accelerator.device, report, clock)
        remove_begun_start(out)
    accelerator.wait_for_everyone()
    files = open_supernet(out, True, trust)
    recipe = Recipe.from_json(files.info["recipe"])
    if not prepares:
        as_prepared(model, files)
        check_same(model, files, source)
        if accelerator.is_main_process and clock.seconds is not None:
            costs, late, least = stage_costs(model, files.spec, recipe, accelerator.device)
            clock.expect({stage: costs[stage] for stage in late}, late, least, recipe.learns)
    supernet = files.load(_part(accelerator))
    if streamed:
        give_back_after_blocks(supernet.model)
    trainer = fit(files, model, supernet, recipe, accelerator, report, clock)
    if accelerator.is_main_process:
        model, supernet = _whole(source, files, model, supernet, trust, accelerator, dtype)
        finish(files, model, tokenizer, supernet, recipe, trainer, report, clock)
    accelerator.wait_for_everyone()
    return open_supernet(out, trust_remote_code=trust)


def _part(accelerator: Any) -> Callable[[QuantizedWeight], Part] | None:
    """What this process keeps of a stored weight: None where that is all of it."""
    if fsdp_plugin(accelerator) is None:
        return None
    return partial(scattered, process=accelerator.process_index, processes=accelerator.num_processes)


def _whole(
    source: str, files: SupernetFiles, model: Any, supernet: Supernet, trust: bool, accelerator: Any, dtype: torch.dtype
) -> tuple[Any, Supernet]:
    """The full model in its own `dtype` and the supernet with all of its codes, before training took parts of them."""
    sharded = fsdp_plugin(accelerator) is not None
    if sharded or model.dtype != dtype:
        model = load_model(source, trust, dtype).model
        as_prepared(model, files)
        model.to(home(model, accelerator.device))
    if sharded:
        again = files.load()
        for name, matrix in again.matrices.items():
            matrix.adapters = supernet.matrices[name].adapters
        supernet = again
    supernet.model.to(model.device)
    return model, supernet
