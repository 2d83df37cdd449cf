"""Two bit-widths, split at a depth: the larger one from there to the last block.

A bit-width's codes and adapters are trained behind blocks of the same bit-width, and make up for those blocks' errors.
Behind others they do not, so where bit-widths change from unit to unit a mixture loses more than its parts. Split at a
depth it changes once, and the larger bit-width reads what more errors left than it was trained on, which measured
better than the other way round (docs/log.md). No sum of losses by unit tells this; it takes a measurement to choose.
"""

from __future__ import annotations

from collections.abc import Collection

from planner.search.base import Problem
from supernet.space import Subnet
from supernet.spec import ModelSpec


def around(widths: Collection[int], mean: float) -> tuple[int, int] | None:
    """The two bit-widths next to `mean`, twice the same where it is one; None beyond the smallest or the largest."""
    low, high = [bits for bits in widths if bits <= mean], [bits for bits in widths if bits >= mean]
    return (max(low), min(high)) if low and high else None


def split(problem: Problem, spec: ModelSpec, low: int, high: int, base: Subnet) -> Subnet | None:
    """The subnet within the limits of which most units, counted from the last, have `high` bits and the others `low`;
    None where even `low` bits alone pass a limit. Embedding and head are as in `base`."""
    small, large = problem.space.uniform(spec, low), problem.space.uniform(spec, high)
    units = [unit.name for unit in spec.units if not unit.is_table]
    for depth in range(len(units) + 1):
        chosen = {name: small[name] for name in units[:depth]} | {name: large[name] for name in units[depth:]}
        subnet = Subnet.of({name: chosen.get(name, choice) for name, choice in base})
        if problem.feasible(subnet):
            return subnet
    return None
