"""The first stage of making a supernet: its windows, what is done to the full model, and its codes.

Reads the full model; leaves everything that training starts from in the folder, and `supernet.json` last.
"""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from records.errors import InputError
from supernet.absent import streams
from supernet.adapters import ADAPTERS
from supernet.auto import decided
from supernet.awq import channel_scales, rescale, rescale_checked, same
from supernet.checkpoint import ORDER, REFERENCE, SCALING, SupernetFiles, save_start
from supernet.clock import Clock, fewer
from supernet.evidence import proof_tokens
from supernet.exact import in_float32
from supernet.expected import Cost, Pass, expected_seconds, step_seconds
from supernet.folder import PREPARING, begin, begun_start
from supernet.gate import Gate
from supernet.loading import Loaded, model_name
from supernet.model import check_head, hidden_states, in_compute_dtype, spec_of_model
from supernet.progress import Progress, silent
from supernet.pruning import channel_order, reorder
from supernet.recipe import Recipe
from supernet.reference import HELD_OUT, MANUAL, Reference, read_references, text_name, write_references
from supernet.refiners import REFINERS
from supernet.shelf import InMemory, OnDisk, Shelf
from supernet.spec import ModelSpec
from supernet.start import Start
from supernet.text import beginning, manual_windows, own_windows, spread_windows
from supernet.train import LEAST_STEPS, TIMED

MEASURED = 4  # windows of each text that subnets are measured on; none of them trains
OWN_MEASURED = 8  # windows of a text that was given for that
CALIBRATION = 64  # windows for the Hessians
LEAST_CALIBRATION = 8  # of them, where minutes are few
OF_HEAD = 24  # windows of the Python manual for the head's, besides
LEARNING = 512  # windows for a quantizer that learns
ORDERING = 16  # windows that tell which channels matter, and how large they are
SAMPLED = 124  # windows that a model writes for itself: with those held out, one batch of generation
LATE = ("try adapters", "proof", "sensitivities")  # stages after the training
TRIAL = 12  # windows that adapters are tried on
SENSITIVITY = 4  # windows for the sensitivities' gradients
READ = 4096  # windows that are drawn from a text at most


def prepare(
    source: str, loaded: Loaded, out: Path, recipe: Recipe, device: torch.device, progress: Progress, clock: Clock
) -> SupernetFiles:
    """Windows, codes and what the full model says of the held-out windows. Blocks are quantized on `device`.

    The model is left as its codes were made: in the order of `ORDER`, scaled by `SCALING`. Where it stays in its files,
    `out` keeps what is made on the way, and a start that was stopped goes on from there.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    spec = spec_of_model(model, model_name(source))
    space = recipe.space(spec)
    check_head(model)
    if recipe.window_tokens > spec.max_context:
        raise InputError(f"window_tokens must be within the model's {spec.max_context}, got {recipe.window_tokens}")
    shelf = shelf_of(out, model, {"source": source, "recipe": recipe.to_json(), "weights": loaded.mark})
    progress("time stages", 0, 1)
    clock.expect(*stage_costs(model, spec, recipe, device), recipe.learns)
    with clock.stage("sample text"):
        windows, text = _windows(model, tokenizer, recipe, progress, clock.seconds_for("sample text"), shelf)
    held_out = _held_out(windows)
    training, start = windows[held_out:], Start(model, spec, space, Gate(), progress, shelf)
    with clock.stage("plain rounding"):
        references = _references(model, tokenizer, windows[:held_out], text, recipe, progress, shelf)
        start.look(references[HELD_OUT])
    with clock.stage("scale channels"):
        changes = _changed(start, training, recipe, device)
    there = training.to(device)
    with clock.stage("quantize") as share:
        recipe = decided(recipe, model, there, clock.learning_seconds())
        counts = shelf.note(
            "counts", lambda: [fewer(most, share, LEAST_CALIBRATION) for most in (CALIBRATION, OF_HEAD)]
        )
        others = manual_windows(tokenizer, counts[1], recipe.window_tokens, "train")
        calibrating = there[: counts[0]]
        supernet = start.quantized(calibrating, recipe, others.to(device))
    refined = start.refined(supernet, there[:LEARNING], recipe, clock) if recipe.quantizer in REFINERS else {}
    info = _begun(source, spec, recipe, text, {"name": recipe.quantizer, **refined}) | start.to_json()
    info |= {"load": loaded.account.line}
    if not shelf.streams:
        begin(out, {"source": source, "recipe": recipe.to_json()})
    return save_start(out, supernet, references, training, loaded, info, changes)


def shelf_of(out: Path, model: Any, info: dict[str, Any]) -> Shelf:
    """Where what is made on the way waits; a folder inside `out`, new or begun, for a model that stays in its files.

    InputError where it was begun with other weights: blocks of two models would be one.
    """
    if not streams(model):
        return InMemory()
    begun = begun_start(out)
    if begun is None:
        begin(out, info)
    elif begun.get("weights") != info["weights"]:
        raise InputError(
            f"{out} was begun with other weights than {info['source']} has now; put those back, or give a new --out"
        )
    return OnDisk(out / PREPARING)


def stage_costs(
    model: Any, spec: ModelSpec, recipe: Recipe, device: torch.device
) -> tuple[dict[str, Cost], tuple[str, ...], float]:
    """What each stage costs, which of them are late, and the seconds that training takes at the least."""
    windows = {
        "sample text": MEASURED + SAMPLED,
        "held out": MEASURED,
        "scale channels": ORDERING,
        "quantize": CALIBRATION + OF_HEAD,
        "try adapters": TRIAL,
        "sensitivities": SENSITIVITY,
    }
    tokens = {stage: recipe.window_tokens * count for stage, count in windows.items()}
    tokens["proof"] = proof_tokens(model, spec)
    one = Pass.measure(model, device, recipe.window_tokens)
    costs = expected_seconds(spec, one, recipe, tokens)
    steps = LEAST_STEPS + TIMED if recipe.adapted_bits else 0
    return costs, LATE, steps * step_seconds(one, recipe.batch * recipe.window_tokens)


def _changed(start: Start, windows: Tensor, recipe: Recipe, device: torch.device) -> dict[str, dict[str, Tensor]]:
    """Reorder and scale the full model's channels as the recipe says; what was done, by the file that keeps it."""
    changes: dict[str, dict[str, Tensor]] = {}
    model, spec = start.model, start.spec
    if recipe.prune:
        changes[ORDER] = channel_order(model, spec, windows[:ORDERING], recipe.seed, start.progress)
        reorder(model, spec, changes[ORDER])
    if recipe.awq:
        text, report = windows[:ORDERING].to(device), start.progress
        scales = start.shelf.file("scales", lambda: channel_scales(model, spec, text, recipe.awq, report))
        if start.better_scaled(scales):
            changes[SCALING] = scales
            rescale_checked(model, scales, windows)
    return changes


def _begun(source: str, spec: ModelSpec, recipe: Recipe, text: str, quantized: dict[str, Any]) -> dict[str, Any]:
    """What `supernet.json` says of how this supernet is made."""
    return {
        "source": source,
        "recipe": recipe.to_json(),
        "quantizer": quantized,
        "adapter": {
            "name": recipe.adapter,
            "options": recipe.adapter_options(len(spec.units)),
            "deploys": ADAPTERS[recipe.adapter].deploys,
        },
        "text": text,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "accelerate")},
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _windows(
    model: Any, tokenizer: Any, recipe: Recipe, progress: Progress, seconds: float | None, shelf: Shelf
) -> tuple[Tensor, str]:
    """Windows to hold out and to train on, and what text they are."""
    tokens, seed = recipe.window_tokens, recipe.seed
    if recipe.data is not None:
        drawn = shelf.file("windows", lambda: {"windows": _drawn(tokenizer, recipe, progress)})
        return drawn["windows"], recipe.data
    return own_windows(in_compute_dtype(model), tokenizer, MEASURED + SAMPLED, tokens, seed, progress, seconds)


def _drawn(tokenizer: Any, recipe: Recipe, progress: Progress) -> Tensor:
    """Windows of the text that was given, those to hold out first."""
    assert recipe.data is not None
    return spread_windows(recipe.data, tokenizer, MEASURED + READ, recipe.window_tokens, recipe.seed, progress)


def _held_out(windows: Tensor) -> int:
    """How many windows of a text train nothing: its first ones."""
    return min(MEASURED, len(windows) // 2)


def training_windows(tokenizer: Any, recipe: Recipe, progress: Progress = silent) -> Tensor:
    """The windows that trained, of a text that can be read again (`Recipe.text_stays`); no plan is measured on them."""
    windows = _drawn(tokenizer, recipe, progress)
    return windows[_held_out(windows) :]


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


def _references(
    model: Any, tokenizer: Any, held_out: Tensor, text: str, recipe: Recipe, progress: Progress, shelf: Shelf
) -> dict[str, Reference]:
    """What the full model says of text held out of training, of another kind, and of what `--eval` names."""
    path = shelf.folder / REFERENCE if isinstance(shelf, OnDisk) else None
    if path is not None and path.exists():
        return read_references(path)
    tokens, first = recipe.window_tokens, len(beginning(tokenizer))
    texts = {HELD_OUT: (held_out, text), MANUAL: (manual_windows(tokenizer, MEASURED, tokens, "measure"), MANUAL)}
    if recipe.eval_text is not None:
        own = spread_windows(recipe.eval_text, tokenizer, OWN_MEASURED, tokens, recipe.seed, progress)
        texts[text_name(recipe.eval_text, texts)] = own, recipe.eval_text
    progress("full model", 0, 1)
    found = {name: Reference.of(model, windows, progress, first, what) for name, (windows, what) in texts.items()}
    if path is not None:
        write_references(path, found)
    return found


def as_prepared(model: Any, files: SupernetFiles) -> None:
    """Do to a full model as it was read what was done to it before its codes were made; it computes the same."""
    if ORDER in files.hashes:
        reorder(model, files.spec, files.read(ORDER))
    if SCALING in files.hashes:
        rescale(model, files.read(SCALING))


@torch.no_grad()
def check_same(model: Any, files: SupernetFiles, source: str) -> None:
    """InputError where `model`, as prepared, is not the one that the supernet was begun from, wherever it lies now."""
    reference, known = files.reference(), files.info["source"]
    window = reference.windows[:1].to(model.device)
    if model.get_input_embeddings().weight.shape[-1] == reference.hidden.shape[-1]:
        with in_float32(model):
            found = hidden_states(model, window)[0].cpu()
        if (found - reference.hidden[0]).norm() <= same(model) * reference.hidden[0].norm():
            return
    raise InputError(f"{files.path} was begun from another model, {known}, than {source}; give the same model")


def home(model: Any, device: torch.device) -> torch.device:
    """Where a full model is while it is quantized and measured: on `device`, or in the CPU's memory where
    it would fill more than half of what is free there. Its blocks come to `device` one by one then."""
    if device.type != "cuda":
        return device
    if streams(model):
        return torch.device("cpu")  # what is not there takes no place, and what takes its place does
    needed = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    return device if needed < torch.cuda.mem_get_info(device)[0] / 2 else torch.device("cpu")
