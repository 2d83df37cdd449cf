"""The codes that training starts from, each improvement of them judged on held-out windows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from supernet.absent import present
from supernet.awq import Scales
from supernet.blocks import give_back_after_blocks
from supernet.build import Supernet, build
from supernet.clock import Clock
from supernet.evaluate import Reference, evaluate
from supernet.exact import in_float32
from supernet.gate import Gate
from supernet.grids import QuantizedWeight
from supernet.model import in_compute_dtype
from supernet.progress import Progress
from supernet.quantize import head_unit, quantize, rounded
from supernet.quantizers import QUANTIZERS, RTN
from supernet.recipe import Recipe
from supernet.refiners import REFINERS
from supernet.rounded import rounding_losses
from supernet.shelf import AGAIN, InMemory, Shelf
from supernet.space import Choice, SearchSpace
from supernet.spec import ModelSpec

SATURATED = 3.0  # nats per token, from which on a loss tells little
SCALED, SOLVED, REFINED = "channel scales", "solved codes", "learned rounding of whole bit-widths"
SOLVED_HEAD = "solved codes of the head"


class Start:
    """A full model on its way to codes, and what each step left on the held-out windows."""

    reference: Reference

    def __init__(
        self,
        model: Any,
        spec: ModelSpec,
        space: SearchSpace,
        gate: Gate,
        progress: Progress,
        shelf: Shelf | None = None,
    ) -> None:
        self.model, self.spec, self.space, self.gate, self.progress = model, spec, space, gate, progress
        self.shelf = shelf or InMemory()
        self.widths = space.bits(spec)
        self.rounding: dict[int, float] = {}
        self.losses: dict[int, float] = {}
        self.unread: list[str] = []
        self.chosen_by: dict[str, int] = {}

    def look(self, reference: Reference, rounding: Mapping[int, float] | None = None) -> None:
        """What plain rounding of the full model loses on held-out windows, of which `reference` is what it says; as
        `rounding` has it where that was measured."""
        self.reference = reference
        self.rounding = dict(rounding or self._noted("plain-rounding", lambda: self._rounded(self.widths)))

    def better_scaled(self, scales: Scales) -> bool:
        """Whether plain rounding loses less with the channel scales, over the two narrowest bit-widths together at
        which it does not lose everything anyway."""
        narrow = [bits for bits in self.widths if self.rounding[bits] < SATURATED][:2] or self.widths[-1:]
        scaled = self._noted("scaled-rounding", lambda: self._rounded(narrow, scales))
        before, after = ([losses[b] for b in narrow] for losses in (self.rounding, scaled))
        lost: list[bool] = []
        with self.gate.over(SCALED, "scalings"):
            self.gate.settle(SCALED, _mean_log(before), _mean_log(after), lambda: lost.append(True))
        return not lost

    def quantized(self, windows: Tensor, recipe: Recipe, others: Tensor | None = None) -> Supernet:
        """The supernet with codes of one matrix at a time; a bit-width that loses more than rounded is rounded. Of
        `others`, windows of another kind of text, the head is told too."""
        refiner = REFINERS.get(recipe.quantizer)
        quantizer = refiner.begins if refiner else QUANTIZERS[recipe.quantizer]()
        self.progress("quantize", 0, 1)
        weights = quantize(
            self.model, self.spec, self.space, quantizer, windows, self.progress, recipe.seed, others, self.shelf,
            self.unread.append, self.chosen_by.__setitem__,
        )  # fmt: skip
        supernet = build(self.model, self.spec, self.space, weights)
        supernet.model.to(self.model.device)
        if self.shelf.streams:
            give_back_after_blocks(supernet.model)
        if recipe.quantizer != "rtn":  # first, as all that is measured from here on is so beside it
            self._judge_head(supernet)
        self.losses = self._noted("solved", lambda: self._measured(supernet))
        if recipe.quantizer != "rtn":
            with self.gate.over(SOLVED, "bit-widths"):
                for bits in self.widths:
                    round_ = partial(self._round, supernet, bits)
                    self.losses[bits] = self.gate.settle(SOLVED, self.rounding[bits], self.losses[bits], round_)
        return supernet

    def _judge_head(self, supernet: Supernet) -> None:
        """Codes of what the head multiplies by go back to rounding where that loses less, beside the widest linears."""
        unit = head_unit(self.model, self.spec)
        name, choices = unit.linears[0].name, self.space[unit.name]
        widest = self.space.uniform(self.spec, self.widths[-1])
        subnets = [widest.replace(unit.name, choice) for choice in choices]
        matrix = supernet.matrices[name]
        ours, plain = {choice: matrix.stored(choice) for choice in choices}, rounded(self.model, name, choices)

        def losses(codes: Mapping[Choice, QuantizedWeight]) -> list[float]:
            for one in codes.values():
                matrix.store(one)
            return [found.kl for found in evaluate(supernet, subnets, self.reference, self.progress)]

        before, after = losses(plain), losses(ours)
        with self.gate.over(SOLVED_HEAD, "bit-widths"):
            for choice, then, now in zip(choices, before, after, strict=True):
                self.gate.settle(SOLVED_HEAD, then, now, partial(matrix.store, plain[choice]))

    def refined(self, supernet: Supernet, windows: Tensor, recipe: Recipe, clock: Clock) -> dict[str, Any]:
        """Improve the codes beyond one matrix; what is worth recording of it. A bit-width that lost is as it was."""
        started, before = time.perf_counter(), supernet.weights()
        teacher = in_compute_dtype(self.model)
        supernet.set_dtype(teacher.dtype)
        within = REFINERS[recipe.quantizer]().within(recipe.block_steps, recipe.code_minutes(clock.learning_seconds()))
        found = within.refine(self.model, teacher, supernet, windows, recipe.seed, self.progress, self.gate)
        supernet.set_dtype(torch.float32)
        after = self._measured(supernet)

        def go_back(bits: int) -> None:
            for name, matrix in supernet.matrices.items():
                for choice in matrix.choices:
                    if choice.bits == bits:
                        matrix.store(before[name][choice])

        with self.gate.over(REFINED, "bit-widths"):
            for bits in self.widths:
                self.losses[bits] = self.gate.settle(REFINED, self.losses[bits], after[bits], partial(go_back, bits))
        return found | {"minutes": (time.perf_counter() - started) / 60}

    def to_json(self) -> dict[str, Any]:
        """What `supernet.json` says of it: KL per token by bits, how often the gate took something back, and the
        experts' linears that no token read, which are rounded to nearest."""
        losses = {"rounding": self.rounding, "start": self.losses}
        plain = {name: {str(bits): kl for bits, kl in found.items()} for name, found in losses.items()}
        return {"held_out": plain, "gate": self.gate.to_json()} | ({"unread": self.unread} if self.unread else {})

    def _rounded(self, widths: Sequence[int], scales: Scales | None = None) -> dict[int, float]:
        with in_float32(self.model):
            return rounding_losses(self.model, self.spec, self.space, self.reference, widths, self.progress, scales)

    def _noted(self, name: str, make: Callable[[], dict[int, float]]) -> dict[int, float]:
        """Losses by bits, once for all runs."""
        found = self.shelf.note(name, lambda: {str(bits): loss for bits, loss in make().items()})
        return {int(bits): loss for bits, loss in found.items()}

    def _measured(self, supernet: Supernet) -> dict[int, float]:
        subnets = [self.space.uniform(self.spec, bits) for bits in self.widths]
        found = evaluate(supernet, subnets, self.reference, self.progress)
        return {bits: quality.kl for bits, quality in zip(self.widths, found, strict=True)}

    @torch.no_grad()
    def _round(self, supernet: Supernet, bits: int) -> None:
        for unit in self.spec.units:
            for linear in unit.linears if not unit.is_table else ():
                matrix, weight = supernet.matrices[linear.name], self.model.get_submodule(linear.name).weight
                same = [choice for choice in matrix.choices if choice.bits == bits]
                with present(weight):
                    codes = RTN().quantize(weight.detach(), same)
                kept = self.shelf.keep(f"{AGAIN}-{bits}-{linear.name}", {linear.name: codes})
                for one in kept[linear.name].values():
                    matrix.store(one)


def _mean_log(losses: Sequence[float]) -> float:
    return sum(math.log(max(loss, 1e-12)) for loss in losses) / len(losses)
