"""The numbers of one subnet, trained for it alone once it is planned.

A supernet's scales serve every subnet, and most were never trained among just these neighbours. Here the codes stay,
and what the grid keeps beside them (scales, and zeros that are any numbers) is trained as adapters are: the same steps,
with one subnet to draw. Units whose new numbers lose on other text go back, as adapters do (`supernet.trial`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from records.errors import InputError
from supernet.adapters import TrainedScales
from supernet.build import Supernet
from supernet.checkpoint import TUNED, SupernetFiles
from supernet.clock import Clock, fewer
from supernet.evidence import alone
from supernet.files import made_again, read_tensors, write_tensors
from supernet.loading import Loaded
from supernet.model import compute_dtype, in_compute_dtype
from supernet.progress import Progress
from supernet.recipe import Recipe
from supernet.samplers import Uniform
from supernet.space import Subnet
from supernet.stages.amounts import LEAST_TRIAL, SAMPLED, TRIAL, stage_costs
from supernet.stages.prepare import training_windows
from supernet.stages.train import fitting_steps
from supernet.text import manual_windows, own_windows
from supernet.train import Trainer, TrainOptions
from supernet.trial import Verdict, try_adapters

STAGES = ("sample text", "try adapters")
THE_PLAN = "the plan"


@dataclass(frozen=True)
class Tuning:
    """What came of it: the subnet alone with its new numbers; those that differ, by `linear|choice|part`; the `units`
    that have some, and of how many; the `text` that trained, and the trial's verdict on another kind of text."""

    supernet: Supernet
    tensors: Mapping[str, Tensor]
    steps: int
    units: int
    of: int
    text: str
    verdict: Verdict


def check_tunable(files: SupernetFiles) -> None:
    """InputError where the numbers beside the codes are not all that a subnet could be given."""
    if files.deploys not in ("scales", "codes"):
        name = files.info["adapter"]["name"]
        raise InputError(
            f"tuning trains the scales that adapters fold into, those of {files.path} are {name} and fold into "
            f"{files.deploys}; plan without --tune, or train with --adapter scales"
        )
    if files.space.coupled:
        raise InputError(
            f"tuning trains whole feed-forward blocks, {files.path} was trained to leave channels out; plan without "
            "--tune, or train without --prune"
        )


def tune(
    files: SupernetFiles, full: Loaded, subnet: Subnet, minutes: float | None, steps: int | None, seed: int,
    progress: Progress,
) -> Tuning:  # fmt: skip
    """Train the numbers of `subnet` by distillation from the `full` model for so many `minutes` in all, or `steps`."""
    from accelerate import Accelerator

    accelerator, recipe = Accelerator(), Recipe.from_json(files.info["recipe"])
    device, dtype = accelerator.device, compute_dtype(accelerator.device)
    clock = Clock(None if steps else minutes)
    progress = clock.showing(progress)
    model = full.model.to(device)
    costs, least = stage_costs(model, files.spec, replace(recipe, train_bits=recipe.bits[:1]), device)
    stages = STAGES[1:] if recipe.text_stays else STAGES
    clock.expect({stage: costs[stage] for stage in stages}, STAGES[1:], least)
    with clock.stage(STAGES[0]):
        count = SAMPLED if steps is None else min(SAMPLED, steps * recipe.batch)
        windows, text = _windows(files, full, recipe, seed, count, progress, clock)
    supernet = alone(files, subnet)
    supernet.adapt(TrainedScales, sorted({choice.bits for _, choice in subnet}), seed)
    supernet.model.to(device)
    supernet.set_dtype(dtype)
    teacher = in_compute_dtype(model)

    def trainer(steps: int) -> Trainer:
        options = TrainOptions(steps, recipe.rate, recipe.batch, seed, checkpointing=recipe.checkpointing)
        return Trainer(teacher, supernet, windows, Uniform(), options, accelerator, None, drawn=files.spec)

    if steps is None:
        progress("time a step", 0, 1)
    run = trainer(steps or fitting_steps(trainer, (clock.learning_seconds() or 0.0) / 60, accelerator))
    run.run(progress)
    with clock.stage(STAGES[1]) as share:
        count = fewer(TRIAL, share, LEAST_TRIAL)
        manual = manual_windows(full.tokenizer, count, recipe.window_tokens, "trial")
        subnets = {THE_PLAN: subnet}
        verdict = try_adapters(
            model, supernet, manual, files.reference(), seed, dtype, progress, subnets=subnets
        )[THE_PLAN]  # fmt: skip
    with torch.no_grad():
        supernet.fold()
    tensors, units = differing(files, supernet, subnet)
    return Tuning(supernet, tensors, run.options.steps, units, _linear_units(files), text, verdict)


def _windows(
    files: SupernetFiles, full: Loaded, recipe: Recipe, seed: int, count: int, progress: Progress, clock: Clock
) -> tuple[Tensor, str]:
    """Windows of the kind that trained, none of them held out, and what text they are. Where that text is gone the
    model writes `count`, which are kept: with given steps, what was written once is read again, however little it is.
    """
    if recipe.text_stays:
        return training_windows(full.tokenizer, recipe, progress), str(recipe.data)
    path = files.place(f"{TUNED}/windows-{seed}.safetensors", writing=True)
    if path.exists():
        with made_again(path):
            kept, about = read_tensors(path)
            found, text = kept["windows"], str(about["text"])
        if len(found) >= count or clock.seconds is None:
            return found, text
    another = recipe.seed + seed + 1  # than the one that wrote the held-out windows
    seconds, tokens = clock.seconds_for(STAGES[0]), recipe.window_tokens
    model = in_compute_dtype(full.model)
    windows, text = own_windows(model, full.tokenizer, count, tokens, another, progress, seconds)
    write_tensors(path, {"windows": windows}, {"text": text})
    return windows, text


def differing(files: SupernetFiles, supernet: Supernet, subnet: Subnet) -> tuple[dict[str, Tensor], int]:
    """The parts of `supernet` that are not those of `files`, by `linear|choice|part`, and how many units have some."""
    found: dict[str, Tensor] = {}
    units = 0
    for unit in files.spec.units:
        choice, before = subnet[unit.name], len(found)
        for linear in unit.linears:
            known, now = files.stored(linear.name, choice), supernet.matrices[linear.name].stored(choice)
            for name, part in now.parts.items():
                if not torch.equal(part.cpu(), known.parts[name]):
                    found[f"{linear.name}|{choice}|{name}"] = part.cpu()
        units += len(found) > before
    return found, units


def _linear_units(files: SupernetFiles) -> int:
    return sum(not unit.is_table for unit in files.spec.units)
