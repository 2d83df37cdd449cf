"""The second stage of making a supernet: adapters on the frozen codes, trained together.

Reads what `supernet.prepare` left; leaves checkpoints, from which a run that was stopped goes on.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from supernet.adapters import ADAPTERS
from supernet.agreement import measure_agreement, read_agreement, write_agreement
from supernet.build import Supernet
from supernet.checkpoint import AGREEMENT_FILE, TRAINING, WINDOWS, SupernetFiles
from supernet.clock import Clock
from supernet.files import read_tensors
from supernet.model import compute_dtype, in_compute_dtype
from supernet.progress import Progress
from supernet.recipe import Recipe
from supernet.samplers import SAMPLERS
from supernet.schedules import SCHEDULES
from supernet.shard import fsdp_plugin, shard_blocks
from supernet.sharing import SHARINGS, Shared
from supernet.train import Trainer, TrainOptions, steps_for

AGREEMENT = 8  # batches that tell which choices may share an adapter
PROBED = 100  # steps of the training whose work tells how many fit into the minutes


def fit(
    files: SupernetFiles, model: Any, supernet: Supernet, recipe: Recipe, accelerator: Any, progress: Progress,
    clock: Clock,
) -> Trainer | None:  # fmt: skip
    """Train to the last step. `model` becomes the teacher: it is left in the dtype of training, or in parts. None where
    no bit-width has adapters: nothing is done then."""
    if not recipe.adapted_bits:
        return None
    windows = files.read(WINDOWS)["windows"]
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

    progress("time a step", 0, 1)
    left = clock.learning_seconds()
    minutes = recipe.minutes if left is None else left / 60
    steps = recipe.steps or _recorded_steps(files) or fitting_steps(trainer, minutes, accelerator)
    run = trainer(steps)
    if accelerator.device.type != "cpu":
        run.make_room()
    run.resume()
    run.save()  # from here on a resumed run knows its number of steps
    run.run(progress)
    return run


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


def _recorded_steps(files: SupernetFiles) -> int | None:
    path = files.path / TRAINING
    return read_tensors(path)[1]["options"]["steps"] if path.exists() else None


def fitting_steps(trainer: Any, minutes: float, accelerator: Any) -> int:
    """Steps that fit into the minutes, the same for every process."""
    from accelerate.utils import broadcast_object_list

    probe = trainer(PROBED)
    steps = [steps_for(minutes, probe.try_step, probe.average_work())]
    return broadcast_object_list(steps)[0] if accelerator.num_processes > 1 else steps[0]
