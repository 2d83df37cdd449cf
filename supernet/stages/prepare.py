"""The first stage of making a supernet: its windows, what the full model says of some, and what is done to the model
before its codes are made.

All of it is in the folder `PREPARING` of the supernet's, each part from when it is there, and goes with the codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from supernet.awq import channel_scales, rescale_checked
from supernet.checkpoint import ORDER, REFERENCE, SCALING, WINDOWS
from supernet.files import read_tensors, write_tensors
from supernet.folder import PREPARED, PREPARING, begin
from supernet.gate import Gate
from supernet.model import in_compute_dtype
from supernet.prepared import Prepared
from supernet.progress import Progress, silent
from supernet.pruning import channel_order, reorder
from supernet.recipe import Recipe
from supernet.reference import HELD_OUT, MANUAL, Reference, read_references, text_name, write_references
from supernet.shelf import OnDisk
from supernet.stages.amounts import MEASURED, ORDERING, OWN_MEASURED, READ, SAMPLED
from supernet.stages.base import Stage
from supernet.start import Start
from supernet.text import beginning, manual_windows, own_windows, spread_windows
from supernet.work import Work


class Prepare(Stage):
    name = "prepare"
    clocked: ClassVar = ("sample text", "plain rounding", "scale channels")

    def done(self, out: Path) -> bool:
        return (out / PREPARING / PREPARED).exists()

    def run(self, work: Work) -> None:
        """The model is left as its codes will be made: in the order of `ORDER`, scaled by `SCALING`."""
        model, recipe, spec = work.model, work.recipe, work.spec
        with work.clock.stage("sample text"):
            windows, text = _windows(work)
        shelf, held_out = OnDisk(work.out / PREPARING), held_out_of(windows)
        start = Start(model, spec, recipe.space(spec), Gate(), work.report, shelf)
        with work.clock.stage("plain rounding"):
            references = _references(work, windows[:held_out], text)
            start.look(references[HELD_OUT])
        with work.clock.stage("scale channels"):
            changes = _changed(start, shelf, windows[held_out:], recipe, work.accelerator.device)
        rounding = {str(bits): loss for bits, loss in start.rounding.items()}
        Prepared(text, rounding, start.gate.to_json(), changes).save(work.out)


def _windows(work: Work) -> tuple[Tensor, str]:
    """Windows to hold out and to train on, and what text they are; drawn or written once for all runs."""
    recipe, path = work.recipe, work.out / PREPARING / WINDOWS
    if path.exists():
        kept, about = read_tensors(path)
        return kept["windows"], recipe.data or str(about["text"])
    if recipe.data is not None:
        windows, text = _drawn(work.loaded.tokenizer, recipe, work.report), recipe.data
    else:
        model, seconds = in_compute_dtype(work.model), work.clock.seconds_for("sample text")
        windows, text = own_windows(
            model, work.loaded.tokenizer, MEASURED + SAMPLED, recipe.window_tokens, recipe.seed, work.report, seconds
        )
    about = {"source": work.source, "recipe": recipe.to_json(), "weights": work.loaded.mark, "streamed": work.streamed}
    begin(work.out, about)
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, {"windows": windows}, {"text": text})
    return windows, text


def _changed(start: Start, shelf: OnDisk, windows: Tensor, recipe: Recipe, device: torch.device) -> tuple[str, ...]:
    """Reorder and scale the full model's channels as the recipe says; the files of what was done."""
    model, spec, report, text = start.model, start.spec, start.progress, windows[:ORDERING]
    changes = []
    if recipe.prune:
        reorder(model, spec, shelf.file(ORDER, lambda: channel_order(model, spec, text, recipe.seed, report)))
        changes.append(ORDER)
    if recipe.awq:
        there = text.to(device)
        scales = shelf.file(SCALING, lambda: channel_scales(model, spec, there, recipe.awq, report))
        if start.better_scaled(scales):
            rescale_checked(model, scales, windows)
            changes.append(SCALING)
    return tuple(changes)


def _drawn(tokenizer: Any, recipe: Recipe, progress: Progress) -> Tensor:
    """Windows of the text that was given, those to hold out first."""
    assert recipe.data is not None
    return spread_windows(recipe.data, tokenizer, MEASURED + READ, recipe.window_tokens, recipe.seed, progress)


def held_out_of(windows: Tensor) -> int:
    """How many windows of a text train nothing: its first ones."""
    return min(MEASURED, len(windows) // 2)


def training_windows(tokenizer: Any, recipe: Recipe, progress: Progress = silent) -> Tensor:
    """The windows that trained, of a text that can be read again (`Recipe.text_stays`); no plan is measured on them."""
    windows = _drawn(tokenizer, recipe, progress)
    return windows[held_out_of(windows) :]


def searching_windows(tokenizer: Any, recipe: Recipe, count: int, progress: Progress = silent) -> Tensor:
    """Up to `count` windows to search on, of two kinds in turns: the last ones of the text that was given, where one
    was, and those of the Python manual that adapters are tried on. Codes are fitted to the text's first `LEARNING`: on
    SmolLM2 learned ones lose less than half there of what they lose elsewhere, and a search would fit the difference.
    """
    manual = manual_windows(tokenizer, count, recipe.window_tokens, "trial")
    if not recipe.text_stays:
        return manual
    last = training_windows(tokenizer, recipe, progress)[-(count // 2) :].flip(0)
    pairs = zip(last, manual, strict=False)
    return torch.stack([window for pair in pairs for window in pair])


def _references(work: Work, held_out: Tensor, text: str) -> dict[str, Reference]:
    """What the full model says of text held out of training, of another kind, and of what `--eval` names."""
    path, recipe, tokenizer = work.out / PREPARING / REFERENCE, work.recipe, work.loaded.tokenizer
    if path.exists():
        return read_references(path)
    tokens, first = recipe.window_tokens, len(beginning(tokenizer))
    texts = {HELD_OUT: (held_out, text), MANUAL: (manual_windows(tokenizer, MEASURED, tokens, "measure"), MANUAL)}
    if recipe.eval_text is not None:
        own = spread_windows(recipe.eval_text, tokenizer, OWN_MEASURED, tokens, recipe.seed, work.report)
        texts[text_name(recipe.eval_text, texts)] = own, recipe.eval_text
    work.report("full model", 0, 1)
    found = {
        name: Reference.of(work.model, windows, work.report, first, what) for name, (windows, what) in texts.items()
    }
    write_references(path, found)
    return found
