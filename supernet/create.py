"""The whole making of a supernet: model and text in, a finished folder out. What `bitfleet train` runs.

Every stage leaves files, so a run that was stopped goes on from the last of them. Under `accelerate launch` the main
process prepares and finishes, and all of them train.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from records.atomic import write_text
from supernet.adapters import ADAPTERS
from supernet.agreement import measure_agreement, read_agreement, write_agreement
from supernet.auto import decided
from supernet.awq import channel_scales, rescale, rescale_checked
from supernet.build import Supernet, build
from supernet.checkpoint import (
    AGREEMENT_FILE,
    ORDER,
    SCALING,
    START,
    SUPERNET,
    TRAINING,
    WINDOWS,
    SupernetFiles,
    fingerprint_of,
    hashes_of,
    open_supernet,
    save_index,
    save_start,
    write_trained,
)  # fmt: skip
from supernet.choices import make_space
from supernet.evaluate import Reference
from supernet.files import read_tensors
from supernet.grids import QuantizedWeight
from supernet.model import check_head, compute_dtype, in_compute_dtype, load_model, spec_of_model
from supernet.progress import Progress, silent
from supernet.pruning import channel_order, reorder
from supernet.quantize import quantize
from supernet.quantizers import QUANTIZERS
from supernet.recipe import Recipe
from supernet.refiners import REFINERS
from supernet.samplers import SAMPLERS
from supernet.schedules import SCHEDULES
from supernet.sensitivity import measure_sensitivities
from supernet.shard import Part, fsdp_plugin, scattered, shard_blocks
from supernet.sharing import SHARINGS, Shared
from supernet.space import SearchSpace
from supernet.spec import ModelSpec
from supernet.text import manual_windows, sample_windows, spread_windows
from supernet.train import Trainer, TrainOptions, steps_for
from supernet.trial import try_adapters

HELD_OUT = 4  # windows that judge and never train
CALIBRATION = 64  # windows for the Hessians
LEARNING = 512  # windows for a quantizer that learns
AGREEMENT = 8  # batches that tell which choices may share an adapter
TRIAL = 12  # windows that adapters are tried on
SENSITIVITY = 4  # windows for the sensitivities' gradients
ORDERING = 16  # windows that tell which channels matter, and how large they are
SAMPLED = 124  # windows that a model writes for itself: with those held out, one batch of generation
READ = 4096  # windows that are drawn from a text at most
PATIENCE = timedelta(days=7)  # the other processes wait while the main one prepares and finishes
PROBED = 100  # steps of the training whose work tells how many fit into the minutes


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
    model, tokenizer = load_model(source, recipe.trust_remote_code)
    prepares = not started and accelerator.is_main_process
    if prepares:
        model.to(home(model, accelerator.device))
        _prepare(source, model, tokenizer, out, recipe, accelerator.device, report)
    accelerator.wait_for_everyone()
    files = open_supernet(out, unfinished=True)
    if files.info.get("source") != source and started:
        raise ValueError(f"{out} was begun from {files.info.get('source')}, got {source}; give the same model")
    trust = recipe.trust_remote_code
    recipe = Recipe.from_json(files.info["recipe"])
    if not prepares:
        as_prepared(model, files)
    supernet = files.load(trust, _part(accelerator))
    trainer = _train(files, model, supernet, recipe, accelerator, report)
    if accelerator.is_main_process:
        model, supernet = _whole(source, files, model, supernet, trust, accelerator)
        files = _finish(files, model, tokenizer, supernet, recipe, trainer, report)
    accelerator.wait_for_everyone()
    return files if accelerator.is_main_process else open_supernet(out)


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
        model = load_model(source, trust)[0]
        as_prepared(model, files)
        model.to(home(model, accelerator.device))
    if sharded:
        again = files.load(trust)
        for name, matrix in again.matrices.items():
            matrix.adapters = supernet.matrices[name].adapters
        supernet = again
    supernet.model.to(model.device)
    return model, supernet


def home(model: Any, device: torch.device) -> torch.device:
    """Where a full model in float32 is while it is quantized and measured: on `device`, or in the CPU's memory where
    it would fill more than half of what is free there. Its blocks come to `device` one by one then."""
    if device.type != "cuda":
        return device
    needed = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    return device if needed < torch.cuda.mem_get_info(device)[0] / 2 else torch.device("cpu")


def as_prepared(model: Any, files: SupernetFiles) -> None:
    """Do to a full model as it was read what was done to it before its codes were made; it computes the same."""
    if (files.path / ORDER).exists():
        reorder(model, files.spec, read_tensors(files.path / ORDER)[0])
    if (files.path / SCALING).exists():
        rescale(model, read_tensors(files.path / SCALING)[0])


def _refuse_used(out: Path, started: bool) -> None:
    if started:
        raise ValueError(f"{out} already holds a supernet; go on with --resume, or give a new --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is in use and holds no supernet; give a new or an empty folder as --out")


def _prepare(
    source: str, model: Any, tokenizer: Any, out: Path, recipe: Recipe, device: torch.device, progress: Progress
) -> None:
    """Windows, codes and what the full model says of the held-out windows. Blocks are quantized on `device`."""
    spec = spec_of_model(model, _model_name(source))
    space = make_space(spec, recipe.bits, recipe.group_size, recipe.prune)
    check_head(model)
    if recipe.window_tokens > spec.max_context:
        raise ValueError(f"window_tokens must be within the model's {spec.max_context}, got {recipe.window_tokens}")
    windows = _windows(model, tokenizer, recipe, progress)
    held_out = min(HELD_OUT, len(windows) // 2)
    reference = Reference.of(model, windows[:held_out], progress)
    training = windows[held_out:]
    order, scales = {}, {}
    if recipe.prune:
        order = channel_order(model, spec, training[:ORDERING], recipe.seed, progress)
        reorder(model, spec, order)
    if recipe.awq:
        scales = channel_scales(model, spec, training[:ORDERING].to(device), recipe.awq, progress)
        rescale_checked(model, scales, training)
    there = training.to(device)
    recipe = decided(recipe, model, there)
    supernet, quantized = _quantized(model, spec, space, there, recipe, progress)
    info = {
        "source": source,
        "recipe": recipe.to_json(),
        "quantizer": quantized,
        "adapter": {
            "name": recipe.adapter,
            "options": recipe.adapter_options(len(spec.units)),
            "deploys": ADAPTERS[recipe.adapter].deploys,
        },
        "text": recipe.data or "sampled from the full model",
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "accelerate")},
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    save_start(out, supernet, reference, training, model.config, tokenizer, info, {ORDER: order, SCALING: scales})


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


def _model_name(source: str) -> str:
    path = Path(source)
    return path.stem if path.suffix == ".gguf" else path.resolve().name if path.exists() else source


def _windows(model: Any, tokenizer: Any, recipe: Recipe, progress: Progress) -> Tensor:
    if recipe.data is not None:
        return spread_windows(recipe.data, tokenizer, HELD_OUT + READ, recipe.window_tokens, recipe.seed)
    return sample_windows(in_compute_dtype(model), HELD_OUT + SAMPLED, recipe.window_tokens, recipe.seed, progress)


def _adapt(
    files: SupernetFiles, model: Any, supernet: Supernet, windows: Tensor, recipe: Recipe, accelerator: Any,
    progress: Progress,
) -> None:  # fmt: skip
    """Give the supernet its adapters. What was measured for it is kept: a resumed run must share the same way."""
    adapter, sharing, bits = ADAPTERS[recipe.adapter], SHARINGS[recipe.sharing](), recipe.adapted_bits
    agreement: dict[str, Any] = {}
    if sharing.measures:
        path = files.path / AGREEMENT_FILE
        known = path.exists()
        accelerator.wait_for_everyone()
        if not known:  # by every process, since each may hold a part of the codes
            supernet.adapt(adapter, bits, recipe.seed, Shared(), full=model, **files.info["adapter"]["options"])
            model.to(accelerator.device)
            supernet.set_dtype(compute_dtype(model.device))
            batches = windows[: AGREEMENT * recipe.batch].to(model.device).split(recipe.batch)
            found = measure_agreement(in_compute_dtype(model), supernet, bits, batches, progress)
            if accelerator.is_main_process:
                write_agreement(path, found)
        accelerator.wait_for_everyone()
        agreement = read_agreement(path)
    supernet.adapt(adapter, bits, recipe.seed, sharing, agreement, model, **files.info["adapter"]["options"])


def _train(
    files: SupernetFiles, model: Any, supernet: Supernet, recipe: Recipe, accelerator: Any, progress: Progress
) -> Trainer:
    """Train to the last step. `model` becomes the teacher: it is left in the dtype of training, or in parts."""
    windows = read_tensors(files.path / WINDOWS)[0]["windows"]
    supernet.model.to(accelerator.device)
    _adapt(files, model, supernet, windows, recipe, accelerator, progress)
    teacher = model.to(compute_dtype(accelerator.device))  # in place: no float32 copy beside it
    plugin = fsdp_plugin(accelerator)
    if plugin is None:
        teacher.to(accelerator.device)
    else:
        shard_blocks(teacher, accelerator, plugin)  # moves it, one block at a time
    supernet.model.to(accelerator.device)
    supernet.set_dtype(teacher.dtype)

    def trainer(steps: int) -> Trainer:
        options = TrainOptions(
            steps, recipe.rate, recipe.batch, recipe.seed, teacher=recipe.teacher, checkpointing=recipe.checkpointing
        )
        sampler, schedule = SAMPLERS[recipe.sampler](), SCHEDULES[recipe.schedule]()
        return Trainer(teacher, supernet, windows, sampler, options, accelerator, files.path / TRAINING, schedule)

    spent = files.info["quantizer"].get("minutes", 0.0)
    steps = recipe.steps or _recorded_steps(files) or _fitting_steps(trainer, recipe, spent, accelerator)
    run = trainer(steps)
    run.resume()
    run.save()  # from here on a resumed run knows its number of steps
    run.run(progress)
    return run


def _recorded_steps(files: SupernetFiles) -> int | None:
    path = files.path / TRAINING
    return read_tensors(path)[1]["options"]["steps"] if path.exists() else None


def _fitting_steps(trainer: Any, recipe: Recipe, spent: float, accelerator: Any) -> int:
    """Steps that fit into what learning the codes left of the minutes, the same for every process."""
    from accelerate.utils import broadcast_object_list

    probe = trainer(PROBED)
    steps = [steps_for(recipe.adapter_minutes(spent), probe.try_step, probe.average_work())]
    return broadcast_object_list(steps)[0] if accelerator.num_processes > 1 else steps[0]


def _finish(
    files: SupernetFiles, model: Any, tokenizer: Any, supernet: Supernet, recipe: Recipe, trainer: Trainer,
    progress: Progress,
) -> SupernetFiles:  # fmt: skip
    """Adapters on trial, sensitivities, and the index that says the supernet is finished."""
    reference = files.reference()
    manual = manual_windows(tokenizer, TRIAL, recipe.window_tokens)
    trial = try_adapters(model, supernet, manual, reference, recipe.seed, compute_dtype(model.device), progress)
    adapted = [str(bits) for bits in supernet.adapted_bits]
    info = {
        "steps": trainer.options.steps,
        "learning_rate": trainer.options.learning_rate,
        "losses": [round(loss, 5) for loss in trainer.losses],
        "adapted_bits": adapted,
        "adapter": files.info["adapter"] | ({} if adapted else {"deploys": "codes"}),  # nothing is left to deploy
        "trial": {str(bits): verdict.to_json() for bits, verdict in trial.items()},
    }
    hashes = hashes_of(files.path, write_trained(files.path, supernet))
    windows = read_tensors(files.path / WINDOWS)[0]["windows"][:SENSITIVITY]
    table, measured = measure_sensitivities(model, supernet, windows, reference, recipe.seed, progress)
    sensitivity = {
        "base": "the full model; scaled so that uniform subnets add up to what they were measured to lose",
        "units": {unit: {str(choice): kl for choice, kl in choices.items()} for unit, choices in table.items()},
        "text": {"source": files.info["text"], "windows": len(windows), "tokens": windows.numel()},
        "supernet": fingerprint_of(hashes),
        "versions": files.info["versions"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text(files.path / "sensitivity.json", json.dumps(sensitivity, indent=1) + "\n")
    evaluations = [{"subnet": subnet.to_json(), "quality": quality.to_json()} for subnet, quality in measured.items()]
    finished = {**files.info, **info, "evaluations": evaluations, "finished": True}
    done = save_index(files.path, files.spec, files.space, finished, hashes)
    for name in (START, WINDOWS, TRAINING, AGREEMENT_FILE):
        (files.path / name).unlink(missing_ok=True)
    return done
