"""The smallest plan within a loss: memory is what shall be least, and the loss is what is limited.

The exact program takes the sum of the sensitivities for a resource, which is where the search begins. What mixtures
are measured to lose is more than that sum, so the limit of memory is then narrowed between one at which some finalist
was measured within the loss and one at which none was, until the two are close.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from planner.frame import Framed, beside_kl
from planner.least import least_memory, room_for, within_memory
from planner.plan import PLANNED, UNIFORM
from planner.propose import Proposed, propose, uniforms
from planner.quality import Measure
from planner.search.base import Candidate, Resource
from planner.search.program import solve
from planner.shortage import loss_error
from records.errors import BudgetError
from supernet.space import Subnet

ROUNDED = "activations, keys and values"
ROUNDS = 8
CLOSE = 0.01
"""The search ends where what is left is this share of what the weights may take at all."""
INSIDE = 0.15
"""A round looks no nearer than this share of what is left to either end."""
KEPT = 2
"""Mixed subnets that a plan compares beside the one it takes."""


def within_loss(framed: Framed, measure: Measure | None, seed: int = 0) -> tuple[Framed, Proposed, tuple[Subnet, ...]]:
    """The finalists of the smallest plan within the loss that `framed` is limited to, the smallest in front; its limits
    as they were planned to, less where the runtime's rounding beside the weights takes a part of the loss; and every
    subnet of the supernet that was tried.

    Finalists are measured as they come; without `measure` the sums of sensitivities decide. There are none where
    nothing keeps the limits beside the loss. BudgetError where what keeps them loses more, with the least loss and the
    least memory that would do.
    """
    asked, rounding = framed.limits.max_kl or math.inf, beside_kl(framed)
    most, name = asked - rounding, framed.scenario.runtime.name
    if most <= 0:
        raise BudgetError(
            f"a loss of {asked:.4g} cannot be met: {name}'s rounding of {ROUNDED} alone costs {rounding:.3g}; "
            f"use a larger --max-loss or another --runtime"
        )
    search = _Bisection(framed, most, measure, seed)
    search.run()
    if not search.losses:
        return framed, search.proposed(), ()
    least = min(search.losses.values())
    if least > most:
        enough = _enough(framed, most, measure, seed)
        raise loss_error(framed.problem, framed.scenario.budget, framed.scenario.device.name, most, least, enough)
    note = f"{rounding:.3g} of the loss of {asked:.4g} go to the rounding of {ROUNDED} by {name}"
    notes = (*framed.notes, note) if rounding else framed.notes
    tried = tuple(framed.apart(subnet) for subnet in search.losses)
    return replace(framed, limits=replace(framed.limits, max_kl=most), notes=notes), search.proposed(), tried


def _enough(framed: Framed, most: float, measure: Measure | None, seed: int) -> float | None:
    """The least memory of the device with which the loss was kept; None where all of it is too little."""
    usable = float(framed.scenario.device.usable_bytes)
    if usable <= framed.problem.resources[0].limit:
        return None
    search = _Bisection(replace(framed, problem=within_memory(framed.problem, usable)), most, measure, seed)
    search.run()
    return search.held


@dataclass
class _Bisection:
    """Finalists by limits of memory. `losses` are what was measured, `found` who proposed it."""

    framed: Framed
    most: float
    measure: Measure | None
    seed: int
    losses: dict[Subnet, float] = field(default_factory=dict)
    found: dict[Subnet, tuple[str, Candidate]] = field(default_factory=dict)
    rounds: int = 0
    ratio: float = 1.0
    """What the last finalist was measured to lose, as a multiple of its sum."""
    close: float = 0.0
    """Ends of memory that are no further apart are one."""
    held: float | None = None
    """The least limit of memory within which the loss was kept."""

    @property
    def memory(self) -> Resource:
        return self.framed.problem.resources[0]

    def run(self) -> None:
        problem = self.framed.problem
        best = solve(problem.space, problem.loss, problem.resources)
        if best is None:
            return
        top = self.memory.amount(best.subnet)
        low, high = _End(self.memory.least(problem.space), math.inf), None
        self.close = CLOSE * (top - low.memory)
        limit: float | None = self.needed(self.most, top)
        while limit is not None:
            loss = self.best_within(limit)
            if loss <= self.most:
                high = _End(min(limit, self.smallest_within()), loss)
            elif limit >= top:
                return
            else:
                low = _End(limit, loss)
            limit = self.next_limit(low, high, top)
        assert high is not None
        self.measure_uniforms(high.memory)

    def needed(self, loss: float, top: float) -> float:
        """The least memory of a sum of so much loss; `top` where there is none."""
        found = least_memory(self.framed.problem, loss)
        return top if found is None else self.memory.amount(found)

    def next_limit(self, low: _End, high: _End | None, top: float) -> float | None:
        """Where to look next: where the sum is as much below the limit as the last one was measured above itself; with
        a loss at both ends, where a line between their logarithms meets the limit. None at the end."""
        guess = self.needed(self.most / self.ratio, top)
        if high is None:
            return guess if self.rounds < ROUNDS // 2 and low.memory + self.close < guess < top else top
        left = high.memory - low.memory
        if self.measure is None or self.rounds >= ROUNDS or left <= self.close:
            return None
        if math.isfinite(low.loss):
            guess = _crossing(low, high, self.most)
            return min(max(guess, low.memory + INSIDE * left), high.memory - INSIDE * left)
        return min(max(guess, low.memory + INSIDE * left), high.memory - self.close)

    def best_within(self, memory: float) -> float:
        """The least that finalists within so much memory were measured to lose."""
        self.rounds += 1
        problem = self.framed.problem
        within = within_memory(problem, room_for(problem, memory))
        proposed = propose(within, self.framed.costs.spec, trials=0, seed=self.seed)
        if not proposed.finalists:  # another limit needs more memory than that
            return math.inf
        self.add(proposed.finalists)
        best = min((one for _, one in proposed.finalists), key=lambda one: self.losses[one.subnet])
        loss = self.losses[best.subnet]
        self.ratio = loss / best.loss if loss > 0 and best.loss > 0 else 1.0
        if loss <= self.most:
            self.held = min(memory, self.held or math.inf)
        return loss

    def add(self, finalists: Sequence[tuple[str, Candidate]]) -> None:
        new = {one.subnet: (kind, one) for kind, one in finalists if one.subnet not in self.losses}
        self.found |= new
        if self.measure is None:
            self.losses |= {subnet: candidate.loss for subnet, (_, candidate) in new.items()}
        elif new:
            qualities = self.measure([self.framed.apart(subnet) for subnet in new])
            self.losses |= {subnet: float(quality["kl"]) for subnet, quality in zip(new, qualities, strict=True)}

    def smallest_within(self) -> float:
        return min(self.memory.amount(subnet) for subnet, loss in self.losses.items() if loss <= self.most)

    def measure_uniforms(self, memory: float) -> None:
        """The smallest uniform subnet within the loss stands beside the plan: from what a plan takes upwards, those
        that are predicted to lose less than everything smaller."""
        least = math.inf
        for candidate in sorted(uniforms(self.framed.problem, self.framed.costs.spec), key=self.taken):
            if candidate.loss >= least:
                continue
            least = candidate.loss
            if self.taken(candidate) < memory and candidate.loss > self.most:
                continue
            self.add([(UNIFORM, candidate)])
            if self.losses[candidate.subnet] <= self.most:
                return

    def taken(self, candidate: Candidate) -> float:
        return self.memory.amount(candidate.subnet)

    def proposed(self) -> Proposed:
        """The smallest within the loss, the mixed subnets next to it, and the best uniform one."""
        ranked = sorted(self.found.values(), key=lambda one: self._rank(one[1]))
        kept = ranked[:1] + [one for one in ranked[1:] if one[0] == PLANNED][:KEPT]
        kept += [one for one in ranked if one[0] == UNIFORM and one not in kept][:1]
        return Proposed(tuple(kept), (self._trace(),) if kept else ())

    def _rank(self, candidate: Candidate) -> tuple[bool, float, float]:
        loss, taken = self.losses[candidate.subnet], self.taken(candidate)
        return (True, loss, taken) if loss > self.most else (False, taken, loss)

    def _trace(self) -> Mapping[str, Any]:
        what = "predicted" if self.measure is None else "measured"
        return {"solver": "HiGHS, least memory within a loss", "rounds": self.rounds, what: len(self.losses)}


@dataclass(frozen=True)
class _End:
    """A limit of memory, and the least that was measured within it."""

    memory: float
    loss: float


def _crossing(low: _End, high: _End, most: float) -> float:
    """Where the logarithm of the loss, taken for a line over memory, meets the limit; the middle where it falls not."""
    share = 0.5
    if min(high.loss, most) > 0 and low.loss > high.loss:
        share = math.log(low.loss / most) / math.log(low.loss / high.loss)
    return low.memory + share * (high.memory - low.memory)
