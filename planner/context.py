"""The longest context that the limits leave room for: contexts are halved between, and all else is decided for each.

More tokens of context take more of every memory and win nothing, so what fits once fits with less. Where the loss is
limited, a context is kept if finalists that have all of the memory were measured within it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from planner.frame import Framed, beside_kl
from planner.place import ALIKE_KL
from planner.propose import propose
from planner.quality import Measure
from planner.request import DEFAULT_CONTEXT, ContextRange
from planner.search.program import solve

STEP = 256
"""Tokens; caches are allocated in pages of so many, or in smaller ones."""


def with_longest_context(
    asked: ContextRange, decided: Callable[[int], Framed], measure: Measure | None = None, seed: int = 0
) -> Framed:
    """What was `decided` for the longest context of those asked for with which the limits are kept, with a note of what
    it costs; for the shortest where none is, which is then refused as any other.

    Sums of sensitivities are asked first, and measured is only what they let pass.
    """
    known: dict[int, Framed] = {}

    def framed(context: int) -> Framed:
        if context not in known:
            known[context] = decided(context)
        return known[context]

    contexts = asked.contexts(STEP)
    fitting = _last(contexts, lambda context: _predicted(framed(context)))
    if measure is not None and framed(contexts[0]).limits.max_kl is not None:
        fitting = _last(fitting, lambda context: _measured(framed(context), measure, seed))
    if not fitting:
        return framed(contexts[0])
    taken = framed(fitting[-1])
    return replace(taken, notes=(*taken.notes, _worth(asked, framed, fitting[-1])))


def _last(contexts: list[int], keeps: Callable[[int], bool]) -> list[int]:
    """The contexts up to the last that keeps the limits, which all shorter ones do then."""
    kept, beyond = 0, len(contexts) + 1
    while beyond - kept > 1:
        middle = beyond - 1 if beyond > len(contexts) else (kept + beyond) // 2  # first of all whether all of them do
        kept, beyond = (middle, beyond) if keeps(contexts[middle - 1]) else (kept, middle)
    return contexts[:kept]


def _least(framed: Framed) -> float | None:
    """The least loss in sum, as predicted; None where nothing keeps the limits."""
    problem = framed.problem
    found = solve(problem.space, problem.loss, problem.resources, problem.decisions)
    return None if found is None else found.loss(problem) + beside_kl(framed)


def _predicted(framed: Framed) -> bool:
    least, most = _least(framed), framed.limits.max_kl
    return least is not None and (most is None or least <= most)


def _measured(framed: Framed, measure: Measure, seed: int) -> bool:
    most = framed.limits.max_kl
    proposed = propose(framed.problem, framed.costs.spec, trials=0, seed=seed)
    if most is None or not proposed.finalists:
        return most is None
    losses = [float(quality["kl"]) for quality in measure([framed.apart(one) for one in proposed.subnets])]
    return min(losses) + beside_kl(framed) <= most


def _worth(asked: ContextRange, framed: Callable[[int], Framed], taken: int) -> str:
    """What the context costs beside a shorter one that was asked for: the first, or the usual one."""
    usual = min(DEFAULT_CONTEXT, taken // 2) if asked.open else asked.shortest
    said = f"context {taken}, " + (
        "all that was asked for" if taken == asked.longest else "the longest within the limits"
    )
    if usual >= taken:
        return said
    before, now = _least(framed(usual)), _least(framed(taken))
    if before is None or now is None:
        return said
    more = max(0.0, now - before)
    worth = f"{more:.4f} KL more than with {usual}, predicted" if more >= ALIKE_KL else f"as little KL as with {usual}"
    hint = "" if framed(taken).limits.max_kl is not None or more < ALIKE_KL else "; --max-loss says what it may cost"
    return f"{said}: {worth}{hint}"
