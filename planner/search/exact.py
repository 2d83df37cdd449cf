"""The additive problem solved exactly (`planner.search.program`)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from planner.search.base import Candidate, Found, Problem, Search, ranked
from planner.search.program import solve

TOLERANCE = 1e-7
"""Nats for each unit below which HiGHS tells losses no longer apart."""


class ExactSearch(Search):
    """The subnet that loses least when losses add, to `TOLERANCE`.

    Its trace holds the gap that was left, 0 when proven optimal.
    """

    name = "exact"

    def search(self, problem: Problem, starts: Sequence[Candidate] = (), seed: int = 0) -> Found:
        started = time.perf_counter()
        solved = solve(problem.space, problem.loss, problem.resources)
        proposals = [] if solved is None else [(solved.subnet, self.name)]
        found = ranked(problem, [*proposals, *((start.subnet, start.source) for start in starts)])
        seconds, gap = time.perf_counter() - started, None if solved is None else solved.gap
        return Found(found, {"solver": "HiGHS", "seconds": round(seconds, 3), "gap": gap})
