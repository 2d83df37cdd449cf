"""The third stage: adapters on the frozen codes, trained together.

Leaves checkpoints, from which a run that was stopped goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from supernet.build import Supernet
from supernet.checkpoint import TRAINING, WINDOWS
from supernet.model import compute_dtype
from supernet.recipe import Recipe
from supernet.recorded import recorded
from supernet.samplers import SAMPLERS
from supernet.schedules import SCHEDULES
from supernet.shard import fsdp_plugin, shard_blocks
from supernet.stages.base import Stage, told
from supernet.train import QUANTIZED, Trainer, TrainOptions, steps_for
from supernet.trained import adapt
from supernet.work import Work

PROBED = 100  # steps of the training whose work tells how many fit into the minutes


class Train(Stage):
    name = "train"
    trains = True

    def done(self, out: Path) -> bool:
        """Where no bit-width has adapters there is nothing to do once there are codes."""
        info, known = told(out), recorded(out / TRAINING)
        if not info or not Recipe.from_json(info["recipe"]).adapted_bits:
            return bool(info)
        return known is not None and known.whole

    def run(self, work: Work) -> None:
        supernet = work.load(parts=True)
        fit(work, supernet)
        if work.main and fsdp_plugin(work.accelerator) is None:
            work.supernet = supernet


def fit(work: Work, supernet: Supernet) -> None:
    """Train to the last step."""
    recipe, accelerator = work.recipe, work.accelerator
    windows, kept = work.files.read(WINDOWS)["windows"], work.out / TRAINING
    supernet.model.to(accelerator.device)
    adapt(work, supernet)
    teacher = _teacher(work)
    supernet.model.to(accelerator.device)
    supernet.set_dtype(compute_dtype(accelerator.device))

    def trainer(steps: int) -> Trainer:
        options = TrainOptions(
            steps, recipe.rate, recipe.batch, recipe.seed, teacher=recipe.teacher, checkpointing=recipe.checkpointing
        )
        sampler, schedule = SAMPLERS[recipe.sampler](), SCHEDULES[recipe.schedule]()
        return Trainer(teacher, supernet, windows, sampler, options, accelerator, kept, schedule)

    work.report("time a step", 0, 1)
    left, known = work.clock.learning_seconds(), recorded(kept)
    minutes = recipe.minutes if left is None else left / 60
    steps = recipe.steps or (known.steps if known else fitting_steps(trainer, minutes, accelerator))
    run = trainer(steps)
    if accelerator.device.type != "cpu":
        run.make_room()
    run.resume()
    run.save()  # from here on a resumed run knows its number of steps
    run.run(work.report)


def _teacher(work: Work) -> Any:
    """The full model in the dtype of training, or in parts; None where the supernet's own codes teach. The work keeps
    it only where it is still as it was read."""
    if work.recipe.teacher == QUANTIZED:
        work.forget_model()
        return None
    accelerator, plugin = work.accelerator, fsdp_plugin(work.accelerator)
    teacher = work.model.to(compute_dtype(accelerator.device))  # in place: no float32 copy beside it
    if plugin is None:
        teacher.to(accelerator.device)
    else:
        shard_blocks(teacher, accelerator, plugin)  # moves it, one block at a time
    if plugin is not None or teacher.dtype != work.dtype or not work.main:
        work.forget_model()
    return teacher


def fitting_steps(trainer: Any, minutes: float, accelerator: Any) -> int:
    """Steps that fit into the minutes, the same for every process."""
    from accelerate.utils import broadcast_object_list

    probe = trainer(PROBED)
    steps = [steps_for(minutes, probe.try_step, probe.average_work())]
    return broadcast_object_list(steps)[0] if accelerator.num_processes > 1 else steps[0]
