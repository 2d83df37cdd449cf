"""The whole making of a supernet: model and text in, a finished folder out. What `bitfleet train` runs.

Runs a list of stages (`supernet.stages`), each from disk to disk. A run that was stopped goes on with the stage that it
was at. Under `accelerate launch` the main process prepares and finishes, and all of them train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from records.errors import InputError
from records.lock import locked
from supernet.checkpoint import SUPERNET, SupernetFiles, open_supernet
from supernet.clock import Clock
from supernet.exact import kept_dtype
from supernet.folder import begun_start, refuse_used, remove_unfinished
from supernet.loading import describe
from supernet.progress import Progress, silent
from supernet.recipe import AUTO, Recipe
from supernet.stages import STAGES
from supernet.stages.amounts import stage_costs
from supernet.stages.base import Stage
from supernet.streaming import as_streamed
from supernet.work import Work

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
    trust = recipe.trust_remote_code
    if not accelerator.is_main_process:
        return _made(_work(source, out, recipe, trust, silent, accelerator))
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out, "another training", waiting):
        started = (out / SUPERNET).exists()
        if waiting and started and open_supernet(out, True, trust).finished:
            return open_supernet(out, trust_remote_code=trust)
        begun = None if started else begun_start(out)
        if started:
            recipe = _resumable(out, recipe, resume, typed)
        elif begun is not None:
            recipe, streamed = _going_on(out, begun, source, recipe, resume, typed), begun.get("streamed", True)
        else:
            refuse_used(out)
        return _made(_work(source, out, recipe, trust, progress, accelerator, streamed))


def resolved(source: str) -> str:
    """A local path as it is from every folder; names of the hub as they are."""
    return str(Path(source).resolve()) if Path(source).is_file() or Path(source).is_dir() else source


def _resumable(out: Path, recipe: Recipe, resume: bool, typed: Mapping[str, str] | None) -> Recipe:
    """The recipe of a training that was stopped: its minutes and steps share out what is still to come."""
    files = open_supernet(out, True, recipe.trust_remote_code)
    if files.finished:
        remove_unfinished(files)  # whoever finished may have been killed before
    if files.finished and resume:
        raise InputError(f"the supernet {out} is finished; use it, or train another with a new --out")
    if not resume:
        raise InputError(f"{out} already holds a supernet; go on with --resume, or give a new --out")
    stored = Recipe.from_json(files.info["recipe"])
    _check_typed(out, stored, recipe, typed)
    return stored


def _going_on(
    out: Path, begun: Mapping[str, Any], source: str, recipe: Recipe, resume: bool, typed: Mapping[str, str] | None
) -> Recipe:
    """The recipe of a start that was stopped."""
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


def _work(
    source: str, out: Path, recipe: Recipe, trust: bool, report: Progress, accelerator: Any, streamed: bool = False
) -> Work:
    """InputError for all that can be told before a weight is read."""
    if streamed and accelerator.num_processes > 1:
        raise InputError("a model that stays in its files is quantized by one process; start one, without a launcher")
    recipe = as_streamed(recipe) if streamed else recipe
    config, spec = describe(source, trust)
    recipe.space(spec)
    if recipe.window_tokens > spec.max_context:
        raise InputError(f"window_tokens must be within the model's {spec.max_context}, got {recipe.window_tokens}")
    dtype, clock = kept_dtype(config, accelerator.device), Clock(None if recipe.steps else recipe.minutes)
    return Work(source, out, recipe, trust, dtype, accelerator, clock, clock.showing(report), streamed)


def _made(work: Work) -> SupernetFiles:
    """Run the stages that are still to be done."""
    expected = False
    for number, stage in enumerate(STAGES):
        mine, rest = stage.trains or work.main, STAGES[number:]
        if mine and not any(later.done(work.out) for later in rest):
            if work.main and not expected:
                _expect(work, rest)
                expected = True
            stage.run(work)
        work.accelerator.wait_for_everyone()
    return open_supernet(work.out, trust_remote_code=work.trust)


def _expect(work: Work, rest: Sequence[Stage]) -> None:
    """Share the minutes out to the stages that are still to be done."""
    clock, recipe = work.clock, work.recipe
    if clock.seconds is None:
        return
    model, trains = work.model, any(stage.trains for stage in rest)
    work.report("time stages", 0, 1)
    costs, least = stage_costs(model, work.spec, recipe, work.accelerator.device)
    after = rest[[stage.trains for stage in rest].index(True) + 1 :] if trains else rest
    named = {name: cost for name, cost in costs.items() if any(name in stage.clocked for stage in rest)}
    late = tuple(name for stage in after for name in stage.clocked)
    clock.expect(named, late, least if trains else 0.0, trains and recipe.learns)
