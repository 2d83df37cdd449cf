"""The fewest packages that serve every device well enough: facility location without capacities, as a 0/1 program.

First the number of packages is minimised; among the covers of that number, the sum of what devices lose over their own
best. Both are solved by HiGHS, and the number is proven or comes with its gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.search.program import quiet

TIME_LIMIT_S = 10.0


@dataclass(frozen=True)
class Cover:
    """`takes` is, for each device, the number of the candidate that it takes. `gap` is the share by which fewer
    packages might do, 0 where the number is proven."""

    takes: tuple[int, ...]
    gap: float

    @property
    def proven(self) -> bool:
        return self.gap == 0


def fewest(losses: Sequence[Sequence[float | None]], max_loss: float) -> Cover:
    """Candidates for devices: `losses[device][candidate]`, at least 0, None where the candidate cannot serve it.

    A device takes one that loses at most `1 + max_loss` times as much as its best.
    """
    table = np.array([[np.inf if loss is None else loss for loss in row] for row in losses], float)
    if not len(table):
        return Cover((), 0.0)
    best = table.min(axis=1, keepdims=True)
    if not np.isfinite(best).all():
        raise ValueError("every device needs a candidate that can serve it")
    allowed = np.isfinite(table) & (table <= best * (1 + max_loss) * (1 + 1e-12))
    opened, gap = _least(allowed)
    excess = np.where(allowed, table / np.maximum(best, 1e-30) - 1, np.inf)
    return Cover(_assigned(excess, opened), gap)


def _least(allowed: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], float]:
    """Candidates that cover all devices, and the share by which fewer might."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    rows = np.unique(allowed, axis=0)  # devices that the same candidates can serve are one
    constraint = LinearConstraint(csr_array(rows.astype(float)), lb=1)
    with quiet():
        done = milp(np.ones(rows.shape[1]), constraints=constraint, bounds=Bounds(0, 1),
                    integrality=np.ones(rows.shape[1]), options={"time_limit": TIME_LIMIT_S})  # fmt: skip
    if done.x is None:  # no time for even one: all are open, and everybody has its own best
        return np.ones(rows.shape[1], bool), 1 - 1 / len(rows)
    opened = done.x > 0.5
    count = int(opened.sum())
    bound = max(1.0, np.ceil(done.mip_dual_bound - 1e-6))  # packages are whole, and there is one at least
    return opened, max(0.0, float(count - bound) / count)


def _assigned(excess: NDArray[np.float64], cover: NDArray[np.bool_]) -> tuple[int, ...]:
    """For each device one of at most as many candidates as `cover` has, so that the sum of `excess` is least; those of
    `cover` where there is no time to find better ones."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    devices, candidates = np.nonzero(np.isfinite(excess))
    pairs, opened, count = len(devices), excess.shape[1], int(cover.sum())
    number = np.arange(pairs)
    ones = np.ones(pairs)
    each = coo_array((ones, (devices, number)), shape=(len(excess), pairs + opened))
    only_open = coo_array(
        (np.concatenate([ones, -ones]), (np.tile(number, 2), np.concatenate([number, pairs + candidates]))),
        shape=(pairs, pairs + opened),
    )
    few = np.concatenate([np.zeros(pairs), np.ones(opened)])
    constraints = [
        LinearConstraint(each.tocsr(), 1, 1),
        LinearConstraint(only_open.tocsr(), -np.inf, 0),
        LinearConstraint(few[None, :], -np.inf, count),
    ]
    cost = np.concatenate([excess[devices, candidates], np.zeros(opened)])
    integral = np.concatenate([np.zeros(pairs), np.ones(opened)])  # with candidates open or not, devices choose whole
    with quiet():
        done = milp(cost, constraints=constraints, bounds=Bounds(0, 1), integrality=integral,
                    options={"time_limit": TIME_LIMIT_S})  # fmt: skip
    open_ = cover if done.x is None else done.x[pairs:] > 0.5
    return tuple(int(choice) for choice in np.where(open_, excess, np.inf).argmin(axis=1))
