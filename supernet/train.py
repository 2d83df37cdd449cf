"""Training: schedule -> sampler -> distillation loss -> step. Resumable, and the same on any number of processes.

A step trains one subnet or several on one batch: the loss is the KL divergence per token from the full model, and only
the sampled adapters move, so bit-widths do not interfere (LLM-QFA, arXiv 2405.20202, section 3.2). Which windows a step
takes depends on the seed and the step alone, which subnets on what the checkpoint holds as well. Processes split a
batch and average their gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from records.errors import InputError
from records.signals import asked_to_stop, unbroken
from supernet.build import Supernet
from supernet.distill import Target, distill
from supernet.files import write_tensors
from supernet.model import checkpoint_blocks
from supernet.progress import Progress, silent
from supernet.pruning import Pruning
from supernet.recorded import recorded, restore
from supernet.samplers import Sampler, Trained, bits_of
from supernet.schedules import Constant, Schedule
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec
from supernet.ties import apart, siblings, tied, tied_space
from supernet.timing import seconds_of

WARMUP = 0.05  # share of the steps in which the learning rate rises
LAST_RATE = 0.05  # share of the learning rate that is left at the end of its cosine
SAVING = 0.05  # share of the time that goes into checkpoints at most: those of a large model take seconds
LEAST_STEPS, TIMED = 8, 2  # steps of any training, and those that are timed before it
QUANTIZED = "quantized"  # the supernet's own codes of `TEACHING_BITS`
TEACHERS = ("full", "largest", QUANTIZED)  # what subnets learn from; `largest` is the largest subnet of their step
TEACHING_BITS = 8


@dataclass(frozen=True)
class TrainOptions:
    """`batch` windows a step over all processes; a checkpoint every `save_every` steps, fewer where they take long.
    With `checkpointing` a student keeps each decoder block's input alone and computes the block again for the backward
    pass.

    `teacher` "largest" is in-place distillation (BigNAS, arXiv 2003.11142, section 3.1; DepS, arXiv 2407.06167): the
    largest subnet of a step learns from the full model, the others from its output. "quantized" learns from the
    supernet's own subnet of the most bits, which nothing trains: no full model is held beside the supernet.
    """

    steps: int
    learning_rate: float
    batch: int = 4
    seed: int = 0
    save_every: int = 20
    teacher: str = "full"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.teacher not in TEACHERS:
            raise InputError(f"teacher must be one of {', '.join(TEACHERS)}, got {self.teacher!r}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine."""
        warmup = max(1, round(WARMUP * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


def drawn_spec(spec: ModelSpec) -> ModelSpec:
    """The units that samplers draw: siblings that some runtimes tie share a draw.

    A runtime that ties them can load no subnet in which they differ, and no step is spent on one.
    """
    return tied(spec, siblings(spec))


def trained_space(supernet: Supernet, drawn: ModelSpec | None = None) -> SearchSpace:
    """What samplers draw from, in the units of `drawn`, of `drawn_spec` where it is None: the choices that have an
    adapter; the largest for units that have none.

    All of them are whole. Which blocks lose channels is drawn after the bits (`supernet.pruning`): so every sampler and
    schedule means the same with pruning and without, and units that must agree are drawn together.
    """
    spec = drawn or drawn_spec(supernet.spec)
    found = {}
    for unit, choices in tied_space(supernet.space.whole, spec):
        matrices = [supernet.matrices[linear.name] for linear in spec.unit(unit).linears]
        adapted = tuple(c for c in choices if all(matrix.adapter(c) is not None for matrix in matrices))
        found[unit] = adapted or choices[-1:]
    return SearchSpace.of(found)


def check_system(sampler: type[Sampler], schedule: type[Schedule], teacher: str, widths: int) -> None:
    """InputError where parts of a training system make no sense together; `widths` bit-widths have adapters."""
    for part, member, plain in (("sampler", sampler, "balanced"), ("schedule", schedule, "constant")):
        if widths < member.least_widths:
            raise InputError(
                f"{part} {_name(member)} needs at least {member.least_widths} bit-widths with adapters, got {widths}; "
                f"use more small bit-widths, such as 2 and 3, or {part} {plain}"
            )
    if teacher == "largest" and not sampler.several:
        raise InputError(
            f"teacher largest needs a sampler that draws several subnets a step, got {_name(sampler)}, which draws one;"
            f" use sampler sandwich, or teacher full"
        )


def check_teacher(teacher: str, bits: Sequence[int], adapted: Sequence[int]) -> None:
    """InputError where codes are to teach that are not there, or that training would move."""
    if teacher == QUANTIZED and (TEACHING_BITS not in bits or TEACHING_BITS in adapted):
        raise InputError(
            f"teacher quantized needs {TEACHING_BITS} among the bits, without an adapter; got bits "
            f"{','.join(map(str, bits))} with adapters at {','.join(map(str, adapted))}; use teacher full"
        )


def _name(member: type) -> str:
    return member.__name__.lower()


def passes(subnets: int) -> int:
    """Forward passes that a step costs: one of the full model, and three for each subnet, backward costing two."""
    return 1 + 3 * subnets


def batch_at(windows: Tensor, step: int, batch: int, seed: int) -> Tensor:
    """The windows of a step: every epoch shuffles anew."""
    rows = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, offset = divmod(position, len(windows))
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        rows.append(order[offset])
    return windows[torch.stack(rows)]


class Trainer:
    """One run: its adapters, its optimizer, what its steps found so far, and its checkpoint, where it keeps one.

    `teacher` is the full model, or None where the supernet's own codes teach; `drawn` has the units that samplers draw,
    where they are others than those of `drawn_spec`.
    """

    def __init__(
        self, teacher: Any, supernet: Supernet, windows: Tensor, sampler: Sampler, options: TrainOptions,
        accelerator: Any, checkpoint: Path | None, schedule: Schedule | None = None, drawn: ModelSpec | None = None,
    ) -> None:  # fmt: skip
        if options.batch % accelerator.num_processes:
            raise InputError(
                f"batch must divide among the processes, got {options.batch} windows and "
                f"{accelerator.num_processes} processes; use a multiple"
            )
        self.teacher, self.supernet, self.windows = teacher, supernet, windows
        self.sampler, self.options, self.accelerator = sampler, options, accelerator
        self.checkpoint = checkpoint
        self.schedule = schedule or Constant()
        self.pruning = Pruning()
        self.most = Subnet.of({unit: choices[-1] for unit, choices in supernet.space.whole})
        self.drawn_spec = drawn or drawn_spec(supernet.spec)
        self.space = trained_space(supernet, self.drawn_spec)
        widths = max(len(choices) for _, choices in self.space)
        check_system(type(sampler), type(self.schedule), options.teacher, widths)
        if options.checkpointing:
            checkpoint_blocks(supernet.model)
        self.parameters = adapter_parameters(supernet)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self._groups(), lr=options.learning_rate, weight_decay=0.0)
        self.history: list[tuple[Trained, ...]] = []
        self._next_save = 0.0

    @property
    def losses(self) -> list[float]:
        """One number a step: the mean over its subnets."""
        return [_loss(trained) for trained in self.history]

    def make_room(self) -> None:
        """Leave the codes that no step computes with to the CPU's memory: `supernet.model.to` brings them back."""
        teaching = self.options.teacher == QUANTIZED
        for unit, choices in self.space:
            for linear in self.drawn_spec.unit(unit).linears:
                matrix = self.supernet.matrices[linear.name]
                matrix.keep_here((*choices, *matrix.choices[-1:]) if teaching else choices)

    def run(self, progress: Progress = silent) -> list[float]:
        """Train to the last step, from the first or from where `resume` left off; returns every step's loss."""
        try:
            while len(self.history) < self.options.steps:
                self.step(len(self.history))
                progress(f"train, KL {_loss(self.history[-1]):.3f}", len(self.history), self.options.steps)
                if len(self.history) % self.options.save_every == 0:
                    self._save_where_cheap()
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt) or asked_to_stop()
            if stopped and all_finite(self.parameters.values()):
                self.save()  # a step that left the numbers may have been stopped as well
            raise
        self.save()
        return self.losses

    def step(self, step: int) -> tuple[Trained, ...]:
        """Find the gradients, then move by them; a signal between moving and the history that tells of it waits."""
        drawn = self._drawn(step)
        subnets = self.pruned(self._apart(drawn), step)
        losses = torch.tensor(self._gradients(subnets, step), device=self.accelerator.device)
        losses = self.accelerator.reduce(losses, "mean")
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        self._average(grads)
        self._check_finite(step, (losses, *grads))
        trained = tuple(
            Trained(bits_of(subnet, self.space), loss) for subnet, loss in zip(drawn, losses.tolist(), strict=True)
        )
        with unbroken():
            for group in self.optimizer.param_groups:
                group["lr"] = self.options.rate(step) * self._factor(group["choice"], step)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self._check_finite(step, self.parameters.values())
            self.history.append(trained)
        return trained

    def _check_finite(self, step: int, values: Iterable[Tensor]) -> None:
        """InputError where training has left the numbers: the checkpoint on disk stays the last one before."""
        if all_finite(values):
            return
        rate = self.options.learning_rate
        raise InputError(
            f"step {step + 1} is not finite at the learning rate {rate:g}; train into a new --out with a smaller "
            f"--learning-rate, such as {rate / 10:.1g}"
        )

    def draw(self, step: int) -> tuple[Subnet, ...]:
        """The subnets of a step, whole."""
        return self._apart(self._drawn(step))

    def _apart(self, drawn: Sequence[Subnet]) -> tuple[Subnet, ...]:
        return tuple(apart(subnet, self.drawn_spec, self.supernet.spec) for subnet in drawn)

    def _drawn(self, step: int) -> tuple[Subnet, ...]:
        """The same in the units of `drawn_spec`."""
        options = self.options
        opened = self.schedule.open(self.space, step, options.steps)
        return self.sampler.sample(opened, step, options.steps, options.seed, self.history)

    def pruned(self, subnets: Sequence[Subnet], step: int) -> tuple[Subnet, ...]:
        """The same with what channels they lose; the largest of several stays whole where others learn from it."""
        space, steps, seed = self.supernet.space, self.options.steps, self.options.seed
        if not space.coupled:
            return tuple(subnets)
        return tuple(
            subnet
            if self.options.teacher == "largest" and not number
            else self.pruning.draw(subnet, space, step, steps, seed, number)
            for number, subnet in enumerate(subnets)
        )

    def try_step(self) -> None:
        """The work of the last step, which finds everything open, to time it: nothing moves."""
        last = self.options.steps - 1
        self._gradients(self.draw(last), last)
        self.optimizer.zero_grad(set_to_none=True)

    def average_work(self) -> float:
        """The work of an average step as a share of `try_step`'s: while choices are closed, subnets may be fewer."""
        work = [passes(len(self._drawn(step))) for step in range(self.options.steps)]
        return fmean(work) / work[-1]

    def _gradients(self, subnets: Sequence[Subnet], step: int) -> list[float]:
        """Leaves the gradient of the mean of the subnets' losses, and returns these.

        The mean, not the sum: its size does not depend on how many subnets there are, so Adam's moments stay comparable
        when a schedule changes their number, and what is descended is the loss that is shown.
        """
        ids = batch_at(self.windows, step, self.options.batch, self.options.seed)
        ids = ids[self.accelerator.process_index :: self.accelerator.num_processes].to(self.accelerator.device)
        target = self.target(ids)
        losses: list[float] = []
        for subnet in subnets:
            self.supernet.activate(subnet)
            loss, own = distill(target, self.supernet.model, ids)
            if self.options.teacher == "largest" and not losses:
                target = own  # the first of several is the largest
            losses.append(loss)
        for parameter in self.parameters.values():
            if parameter.grad is not None and len(subnets) > 1:
                parameter.grad /= len(subnets)
        return losses

    def target(self, ids: Tensor) -> Target:
        """What a step's subnets learn from, or the largest of them, on the batch `ids`."""
        if self.options.teacher != QUANTIZED:
            return Target.of(self.teacher, ids)
        self.supernet.activate(self.most)
        return Target.of(self.supernet.model, ids)

    def _groups(self) -> list[dict[str, Any]]:
        """One group of parameters for each choice, so that a schedule can set its learning rate.

        Adam divides the size of a gradient out again, so scaling gradients would do nothing. Adapters that a step did
        not draw have no gradient, and AdamW leaves them and their moments alone, whatever their rate.
        """
        choices = {str(choice): choice for _, options in self.space for choice in options}
        groups: dict[str, list[torch.nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault(name.split("|")[1], []).append(parameter)
        return [{"params": members, "choice": choices.get(key)} for key, members in groups.items()]

    def _factor(self, choice: Choice | None, step: int) -> float:
        """The schedule's factor on a learning rate; 1 for parameters that belong to no one choice."""
        return 1.0 if choice is None else self.schedule.rate(choice, self.space, step, self.options.steps)

    def _average(self, grads: Sequence[Tensor]) -> None:
        if self.accelerator.num_processes == 1:
            return
        flat = self.accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), "mean")
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def _save_where_cheap(self) -> None:
        """Save, unless the last time took so long that saving would come to more than SAVING of the time."""
        started = time.monotonic()
        if started >= self._next_save:
            self.save()
            ended = time.monotonic()
            self._next_save = ended + (ended - started) / SAVING

    def save(self) -> None:
        """Adapters, optimizer state and history in one file, replaced in one go; the main process writes."""
        if self.checkpoint is None or not self.accelerator.is_main_process:
            return
        tensors = {}
        for name, parameter in self.parameters.items():
            tensors[name] = parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value
        history = [[[one.bits, one.loss] for one in trained] for trained in self.history]
        write_tensors(self.checkpoint, tensors, {"history": history, "options": self.options.to_json()})

    def resume(self) -> None:
        """Go on from the checkpoint; from the first step where there is none yet."""
        known = None if self.checkpoint is None else recorded(self.checkpoint)
        if self.checkpoint is None or known is None:
            return
        tensors = restore(self.checkpoint, self.parameters)
        for name, parameter in self.parameters.items():
            found = ((key, tensors.get(f"{name}/{key}")) for key in ("step", "exp_avg", "exp_avg_sq"))
            state = {key: value for key, value in found if value is not None}
            if state:
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
                }
        self.history = [tuple(Trained(bits, loss) for bits, loss in trained) for trained in known.history]


def all_finite(values: Iterable[Tensor]) -> bool:
    """Asked once for all of them: a GPU is waited for with each answer."""
    return math.isfinite(torch.nn.utils.get_total_norm(list(values), math.inf).item())


def _loss(trained: Sequence[Trained]) -> float:
    return fmean(one.loss for one in trained)


def adapter_parameters(supernet: Supernet) -> dict[str, torch.nn.Parameter]:
    """Every adapter's parameters by `linear|choice|parameter`."""
    return {
        f"{name}|{choice}|{parameter}": value
        for name, matrix in supernet.matrices.items()
        for choice, adapter in matrix.adapters.items()
        for parameter, value in adapter.named_parameters()
    }


def steps_for(minutes: float, trainer_step: Callable[[], None], share: float = 1.0, least: int = LEAST_STEPS) -> int:
    """How many steps fit into `minutes`, from the time that one takes after one to warm up; both come off the minutes.

    An average step does `share` of their work.
    """
    seconds = seconds_of(trainer_step, times=TIMED - 1)
    return max(least, int((minutes * 60 / seconds - TIMED) / share))
