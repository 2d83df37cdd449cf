"""One gate for whatever improves a model: where held-out text says that it lost, its start comes back.

An improver measures what it starts from, does its work, measures again on text that it never saw, and hands the gate
both numbers and a way back. AWQ's scales, solved codes, learned rounding and trained adapters all go through here, the
last ones block by block or width by width; the gate counts how often their start came back, and says so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from supernet.progress import say

ALIKE = 1 + 1e-6  # two measurements of the same weights, made in another order, differ by less
SLACK = 1.05  # times that a width may lose more than plain rounding or its start at the end: of other measurements
FLOOR = 5e-4  # nats that are no loss: at 8 bits two measurements in bfloat16 differ by as much


@dataclass
class Tally:
    tried: int = 0
    returned: int = 0


@dataclass
class Gate:
    """Decides for every improver of a run, and keeps count by improver."""

    tallies: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))

    def settle(self, improver: str, before: float, after: float, go_back: Callable[[], object]) -> float:
        """The loss that is left: `after` where that is no more than `before`, else `before`, and `go_back` is called.

        Both are measured on the same held-out text, and alike but for rounding are the same. What is not a number has
        lost.
        """
        tally = self.tallies[improver]
        tally.tried += 1
        if after <= before * ALIKE or (math.isfinite(after) and not math.isfinite(before)):
            return after
        tally.returned += 1
        go_back()
        return before

    @contextmanager
    def over(self, improver: str, places: str) -> Iterator[None]:
        """The work of one improver on several `places`, such as "blocks"; says at its end where its start came back."""
        earlier = self.tallies[improver].tried, self.tallies[improver].returned
        yield
        tried, returned = self.tallies[improver].tried - earlier[0], self.tallies[improver].returned - earlier[1]
        if returned:
            say(f"{improver}: {returned} of {tried} {places} went back to their start, which loses less")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Gate:
        gate = cls()
        gate.tallies |= {name: Tally(**counts) for name, counts in data.items()}
        return gate

    def to_json(self) -> dict[str, Any]:
        return {name: {"tried": found.tried, "returned": found.returned} for name, found in self.tallies.items()}


def lost_widths(
    now: Mapping[int, float], rounding: Mapping[int, float], start: Mapping[int, float]
) -> dict[int, tuple[str, float, float]]:
    """The bit-widths that lose more at the end than they should: (than what, KL now, KL then) by bits.

    `rounding` is the KL of plain rounding, `start` that of the codes before training, on the same held-out windows.
    """
    found = {}
    for bits, kl in now.items():
        for name, losses in (("plain rounding", rounding), ("the codes that training started from", start)):
            then = losses.get(bits)
            if then is not None and not kl <= max(SLACK * then, then + FLOOR):
                found[bits] = (name, kl, then)
                break
    return found
