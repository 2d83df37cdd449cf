"""Training: sampler -> distillation loss -> step. Resumable, and the same on any number of processes.

A step trains one subnet on one batch: the loss is the KL divergence per token from the full model, and only the
sampled adapters move, so bit-widths do not interfere (LLM-QFA, arXiv 2405.20202, section 3.2). Which subnet and which
windows a step takes depends on the seed and the step alone. Processes split a batch and average their gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernet.build import Progress, Supernet, silent
from supernet.files import read_tensors, write_tensors
from supernet.model import hidden_states, logits_of
from supernet.samplers import Sampler
from supernet.space import SearchSpace, Subnet

LOSS_TOKENS = 512  # logits are made for so many tokens at a time: a vocabulary is wide
WARMUP = 0.05  # share of the steps in which the learning rate rises
CLEARLY = 0.95  # KL with adapters must be below this share of the KL without them
LAST_RATE = 0.05  # share of the learning rate that is left at the end of its cosine


@dataclass(frozen=True)
class TrainOptions:
    """`batch` windows a step over all processes; a checkpoint every `save_every` steps."""

    steps: int
    learning_rate: float
    batch: int = 4
    seed: int = 0
    save_every: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine."""
        warmup = max(1, round(WARMUP * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


def trained_space(supernet: Supernet) -> SearchSpace:
    """What a step draws from: the choices that have an adapter; the largest for units that have none."""
    names = {unit.name: unit.linears[0].name for unit in supernet.spec.units}
    adapted = {
        unit: tuple(c for c in choices if supernet.matrices[names[unit]].adapter(c) is not None)
        for unit, choices in supernet.space
    }
    return SearchSpace.of({unit: adapted[unit] or choices[-1:] for unit, choices in supernet.space})


def batch_at(windows: Tensor, step: int, batch: int, seed: int) -> Tensor:
    """The windows of a step: every epoch shuffles anew."""
    rows = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, offset = divmod(position, len(windows))
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        rows.append(order[offset])
    return windows[torch.stack(rows)]


def distill(teacher: Any, student: Any, ids: Tensor) -> float:
    """KL per token of the student from the teacher on `ids` `(batch, tokens)`; leaves gradients, returns the loss.

    The head is frozen, so each stretch of tokens gives the gradient of its hidden states and its logits are dropped.
    """
    with torch.no_grad():
        targets = hidden_states(teacher, ids).flatten(0, 1)
    hidden = hidden_states(student, ids)
    leaf = hidden.detach().requires_grad_()
    total = 0.0
    for target, ours in zip(targets.split(LOSS_TOKENS), leaf.flatten(0, 1).split(LOSS_TOKENS), strict=True):
        logits = logits_of(student, ours)
        with torch.no_grad():
            full = logits_of(teacher, target).float().log_softmax(-1)
            mine = logits.float().log_softmax(-1)
            likely = full.exp()
            total += (likely * (full - mine)).sum().item() / ids.numel()
            slope = (mine.exp() - likely) / ids.numel()  # of the KL divergence, with respect to the student's logits
        logits.backward(slope.to(logits.dtype))
    hidden.backward(leaf.grad)
    return total


class Trainer:
    """One run: its adapters, its optimizer, the losses so far, and its checkpoint."""

    def __init__(
        self, teacher: Any, supernet: Supernet, windows: Tensor, sampler: Sampler, options: TrainOptions,
        accelerator: Any, checkpoint: Path,
    ) -> None:  # fmt: skip
        if options.batch % accelerator.num_processes:
            raise ValueError(
                f"batch must divide among the processes, got {options.batch} windows and "
                f"{accelerator.num_processes} processes; use a multiple"
            )
        self.teacher, self.supernet, self.windows = teacher, supernet, windows
        self.sampler, self.options, self.accelerator = sampler, options, accelerator
        self.checkpoint = checkpoint
        self.space = trained_space(supernet)
        self.parameters = adapter_parameters(supernet)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=options.learning_rate, weight_decay=0.0)
        self.losses: list[float] = []

    def run(self, progress: Progress = silent) -> list[float]:
        """Train to the last step, from the first or from where `resume` left off; returns every step's loss."""
        try:
            while len(self.losses) < self.options.steps:
                self.losses.append(self.step(len(self.losses)))
                progress(f"train, KL {self.losses[-1]:.3f}", len(self.losses), self.options.steps)
                if len(self.losses) % self.options.save_every == 0:
                    self.save()
        except KeyboardInterrupt:
            self.save()
            raise
        self.save()
        return self.losses

    def step(self, step: int) -> float:
        loss = self._gradients(step)
        self._average([p.grad for p in self.parameters.values() if p.grad is not None])
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(self.accelerator.reduce(torch.tensor(loss, device=self.accelerator.device), "mean"))

    def try_step(self) -> float:
        """The work of a step, to time it: nothing moves."""
        loss = self._gradients(0)
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _gradients(self, step: int) -> float:
        options = self.options
        ids = batch_at(self.windows, step, options.batch, options.seed)
        ids = ids[self.accelerator.process_index :: self.accelerator.num_processes].to(self.accelerator.device)
        subnet = self.sampler.sample(self.space, step, options.steps, options.seed)
        self.supernet.activate(subnet)
        return distill(self.teacher, self.supernet.model, ids)

    def _average(self, grads: Sequence[Tensor]) -> None:
        if self.accelerator.num_processes == 1:
            return
        flat = self.accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), "mean")
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def save(self) -> None:
        """Adapters, optimizer state and losses in one file, replaced in one go; the main process writes."""
        if not self.accelerator.is_main_process:
            return
        tensors = {}
        for name, parameter in self.parameters.items():
            tensors[name] = parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value
        write_tensors(self.checkpoint, tensors, {"losses": self.losses, "options": self.options.to_json()})

    def resume(self) -> None:
        """Go on from the checkpoint; from the first step where there is none yet."""
        if not self.checkpoint.exists():
            return
        tensors, meta = read_tensors(self.checkpoint)
        for name, parameter in self.parameters.items():
            if name not in tensors:
                raise ValueError(f"the checkpoint {self.checkpoint} is of another supernet; train into a new folder")
            parameter.data.copy_(tensors[name])
            found = ((key, tensors.get(f"{name}/{key}")) for key in ("step", "exp_avg", "exp_avg_sq"))
            state = {key: value for key, value in found if value is not None}
            if state:
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
                }
        self.losses = list(meta["losses"])


def adapter_parameters(supernet: Supernet) -> dict[str, torch.nn.Parameter]:
    """Every adapter's parameters by `linear|choice|parameter`."""
    return {
        f"{name}|{choice}|{parameter}": value
        for name, matrix in supernet.matrices.items()
        for choice, adapter in matrix.adapters.items()
        for parameter, value in adapter.named_parameters()
    }


def steps_for(minutes: float, trainer_step: Callable[[], float], least: int = 8) -> int:
    """How many steps fit into `minutes`, from the time that two of them take after one to warm up."""
    trainer_step()
    started = time.perf_counter()
    trainer_step()
    trainer_step()
    seconds = (time.perf_counter() - started) / 2
    return max(least, int(minutes * 60 / seconds) - 3)


def drop_losing(supernet: Supernet, kl: Callable[[Sequence[Subnet]], list[float]]) -> dict[int, tuple[float, float]]:
    """Adapters on trial: those of a bit-width go where its uniform subnet is not clearly better with them, on held-out
    text. A few windows are not every text, so a win by less than `CLEARLY` does not count.

    Returns KL per token (without, with) by bits.
    """
    bits = sorted({c.bits for m in supernet.matrices.values() for c in m.choices if m.adapter(c) is not None})
    subnets = [supernet.space.uniform(supernet.spec, b) for b in bits]
    trained = kl(subnets)
    kept = {name: matrix.adapters for name, matrix in supernet.matrices.items()}
    for matrix in supernet.matrices.values():
        matrix.adapters = torch.nn.ModuleDict()
    frozen = kl(subnets)
    verdicts = dict(zip(bits, zip(frozen, trained, strict=True), strict=True))
    losing = {b for b, (without, having) in verdicts.items() if having >= CLEARLY * without}
    for name, matrix in supernet.matrices.items():
        matrix.adapters = kept[name]
        matrix.drop(choice for choice in matrix.choices if choice.bits in losing)
    return verdicts
