"""The first stage of making a supernet: its windows, what is done to the full model, and its codes.

Reads the full model; leaves everything that training starts from in the folder, and `supernet.json` last.
"""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from records.errors import InputError
from supernet.adapters import ADAPTERS
from supernet.auto import decided
from supernet.awq import channel_scales, rescale, rescale_checked
from supernet.build import Supernet, build
from supernet.checkpoint import ORDER, SCALING, SupernetFiles, save_start
from supernet.choices import make_space
from supernet.evaluate import Reference
from supernet.folder import begin
from supernet.loading import Loaded, model_name
from supernet.model import check_head, hidden_states, in_compute_dtype, spec_of_model
from supernet.progress import Progress
from supernet.pruning import channel_order, reorder
from supernet.quantize import quantize
from supernet.quantizers import QUANTIZERS
from supernet.recipe import Recipe
from supernet.refiners import REFINERS
from supernet.space import SearchSpace
from supernet.spec import ModelSpec
from supernet.text import own_windows, spread_windows

HELD_OUT = 4  # windows that judge and never train
CALIBRATION = 64  # windows for the Hessians
LEARNING = 512  # windows for a quantizer that learns
ORDERING = 16  # windows that tell which channels matter, and how large they are
SAMPLED = 124  # windows that a model writes for itself: with those held out, one batch of generation
SAME = 1e-3  # of the hidden states' size, by which those of one model may differ from device to device
READ = 4096  # windows that are drawn from a text at most


def prepare(
    source: str, loaded: Loaded, out: Path, recipe: Recipe, device: torch.device, progress: Progress
) -> SupernetFiles:
    """Windows, codes and what the full model says of the held-out windows. Blocks are quantized on `device`.

    The model is left as its codes were made: in the order of `ORDER`, scaled by `SCALING`.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    spec = spec_of_model(model, model_name(source))
    space = make_space(spec, recipe.bits, recipe.group_size, recipe.prune)
    check_head(model)
    if recipe.window_tokens > spec.max_context:
        raise InputError(f"window_tokens must be within the model's {spec.max_context}, got {recipe.window_tokens}")
    windows, text = _windows(model, tokenizer, recipe, progress)
    held_out = min(HELD_OUT, len(windows) // 2)
    reference = Reference.of(model, windows[:held_out], progress)
    training = windows[held_out:]
    changes = _changed(model, spec, training, recipe, device, progress)
    there = training.to(device)
    recipe = decided(recipe, model, there)
    supernet, quantized = _quantized(model, spec, space, there, recipe, progress)
    info = _begun(source, spec, recipe, text, quantized) | {"load": loaded.account.line}
    begin(out, {"source": source, "recipe": recipe.to_json()})
    return save_start(out, supernet, reference, training, loaded, info, changes)


def _changed(
    model: Any, spec: ModelSpec, windows: Tensor, recipe: Recipe, device: torch.device, progress: Progress
) -> dict[str, dict[str, Tensor]]:
    """Reorder and scale the full model's channels as the recipe says; what was done, by the file that keeps it."""
    changes: dict[str, dict[str, Tensor]] = {}
    if recipe.prune:
        changes[ORDER] = channel_order(model, spec, windows[:ORDERING], recipe.seed, progress)
        reorder(model, spec, changes[ORDER])
    if recipe.awq:
        changes[SCALING] = channel_scales(model, spec, windows[:ORDERING].to(device), recipe.awq, progress)
        rescale_checked(model, changes[SCALING], windows)
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


def _quantized(
    model: Any, spec: ModelSpec, space: SearchSpace, windows: Tensor, recipe: Recipe, progress: Progress
) -> tuple[Supernet, dict[str, Any]]:
    """The supernet before training, with the best codes that its quantizer finds, and how that went."""
    refiner = REFINERS.get(recipe.quantizer)
    quantizer = refiner.begins if refiner else QUANTIZERS[recipe.quantizer]()
    found: dict[str, Any] = {}
    weights = quantize(model, spec, space, quantizer, windows[:CALIBRATION], progress, recipe.seed)
    supernet = build(model, spec, space, weights)
    if refiner:
        supernet.model.to(model.device)
        teacher = in_compute_dtype(model)
        supernet.set_dtype(teacher.dtype)
        started = time.perf_counter()
        within = refiner().within(recipe.block_steps, recipe.code_minutes)
        found = within.refine(model, teacher, supernet, windows[:LEARNING], recipe.seed, progress)
        found["minutes"] = (time.perf_counter() - started) / 60
        supernet.set_dtype(torch.float32)
    return supernet, {"name": recipe.quantizer, **found}


def _windows(model: Any, tokenizer: Any, recipe: Recipe, progress: Progress) -> tuple[Tensor, str]:
    """Windows to hold out and to train on, and what text they are."""
    tokens, seed = recipe.window_tokens, recipe.seed
    if recipe.data is not None:
        return spread_windows(recipe.data, tokenizer, HELD_OUT + READ, tokens, seed, progress), recipe.data
    return own_windows(in_compute_dtype(model), tokenizer, HELD_OUT + SAMPLED, tokens, seed, progress)


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
        found = hidden_states(model, window)[0].float().cpu()
        if (found - reference.hidden[0]).norm() <= SAME * reference.hidden[0].norm():
            return
    raise InputError(f"{files.path} was begun from another model, {known}, than {source}; give the same model")


def home(model: Any, device: torch.device) -> torch.device:
    """Where a full model in float32 is while it is quantized and measured: on `device`, or in the CPU's memory where
    it would fill more than half of what is free there. Its blocks come to `device` one by one then."""
    if device.type != "cuda":
        return device
    needed = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    return device if needed < torch.cuda.mem_get_info(device)[0] / 2 else torch.device("cpu")
