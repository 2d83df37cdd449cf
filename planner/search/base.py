"""What a search is given and what it finds. Values only; a member imports its solver when it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from supernet.space import Choice, SearchSpace, Subnet

Table = Mapping[str, Mapping[Choice, float]]
"""unit -> choice -> number."""
SAME = 1e-12
"""Of a limit: what the order of a sum makes."""


@dataclass(frozen=True)
class Resource:
    """Something a budget limits: what every unit's choice adds to a constant, in `unit` ("bytes" or "ms")."""

    name: str
    unit: str
    limit: float
    constant: float
    table: Table

    def amount(self, subnet: Subnet) -> float:
        return self.constant + sum(self.table[name][choice] for name, choice in subnet)

    def room(self, floor: float) -> float:
        """What the limit leaves above `floor`, the sum of the cheapest choices; below 0 where that passes it."""
        return self._told_apart(self.limit - self.constant - floor)

    def extra(self, amount: float, least: float) -> float:
        """What a choice takes above the `least` of its unit's choices."""
        return self._told_apart(amount - least)

    def _told_apart(self, difference: float) -> float:
        """0 where a difference is no more than the order of a sum makes."""
        return 0.0 if abs(difference) < SAME * abs(self.limit) else difference

    def together(self, units: Sequence[str], option: Sequence[Choice]) -> float:
        """What one option of a block of units takes."""
        return float(sum(self.table[unit][choice] for unit, choice in zip(units, option, strict=True)))

    def least(self, space: SearchSpace) -> float:
        """What the subnet of `space` takes that takes least, whatever else it costs."""
        blocks = ((self.together(units, option) for option in options) for units, options in space.blocks)
        return self.constant + sum(min(amounts) for amounts in blocks)

    def smallest(self, space: SearchSpace) -> Subnet:
        """That subnet."""
        amounts = ([self.together(units, option) for option in options] for units, options in space.blocks)
        return space.at([of.index(min(of)) for of in amounts])


@dataclass(frozen=True)
class Option:
    """One way to settle a decision: what it loses by itself (nats per token), and what it `takes` of each resource
    beside the constant, by the resource's name; 0 of those that are not there."""

    name: str
    loss: float = 0.0
    takes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What is decided once, beside the choice of each unit: one of `options`. Losses add to those of the units."""

    name: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Problem:
    """Minimise the quality lost over `space` and `decisions` while no resource passes its limit.

    `loss` is what each unit's choice loses by itself (nats per token, additive). `objective`, where given, is what a
    subnet loses as a whole and need not be the sum. `groups` names units that are alike (role and depth). The exact
    program alone solves for `decisions`; once they are `settled`, every search can go on.
    """

    space: SearchSpace
    loss: Table
    resources: tuple[Resource, ...]
    objective: Callable[[Subnet], float] | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()

    def additive(self, subnet: Subnet) -> float:
        return sum(self.loss[name][choice] for name, choice in subnet)

    def value(self, subnet: Subnet) -> float:
        return self.additive(subnet) if self.objective is None else self.objective(subnet)

    def feasible(self, subnet: Subnet) -> bool:
        return all(resource.amount(subnet) <= resource.limit for resource in self.resources)


@dataclass(frozen=True)
class Candidate:
    """A subnet within every limit, with what it is expected to lose and who proposed it."""

    subnet: Subnet
    loss: float
    source: str


@dataclass(frozen=True)
class Found:
    """Candidates, best first and no two alike (none when nothing within the limits was found), and how it went."""

    candidates: tuple[Candidate, ...]
    trace: Mapping[str, Any]


class Search(ABC):
    """One way to solve a Problem."""

    name: ClassVar[str]

    @abstractmethod
    def search(self, problem: Problem, starts: Sequence[Candidate] = (), seed: int = 0) -> Found:
        """Candidates for `problem`; the same `seed` finds the same.

        `starts` are tried first, the one expected to be best in front; what is found is never worse than a start
        that is within the limits.
        """


def ranked(problem: Problem, proposals: Sequence[tuple[Subnet, str]]) -> tuple[Candidate, ...]:
    """The feasible proposals, best first, each subnet once and under the first name that it was proposed by."""
    unique: dict[Subnet, str] = {}
    for subnet, source in proposals:
        unique.setdefault(subnet, source)
    kept = [Candidate(s, problem.value(s), source) for s, source in unique.items() if problem.feasible(s)]
    return tuple(sorted(kept, key=lambda candidate: candidate.loss))
