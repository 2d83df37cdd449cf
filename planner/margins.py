"""What each decision is worth at the margin: how the plan would change if one of them were settled otherwise.

All else is decided again by the exact program, so a number is what the change costs or wins once the weights have made
the best of it. It is a sum of sensitivities, as every prediction is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from planner.decide import KV_CACHE
from planner.frame import Framed, frame
from planner.place import ALIKE_KL
from planner.plan import CONTEXT, GPU_LAYERS, Margin
from planner.request import Workload
from planner.search.program import Solution, solve
from planner.shortage import readable

LEAST_MS = 1.0
MOST = 4


def margins(framed: Framed) -> tuple[Margin, ...]:
    """What is worth saying of a problem that has a solution, at most `MOST`."""
    now = _best(framed)
    if now is None or framed.limits.max_kl is not None:  # a limited loss is the same whatever else is
        return ()
    found = []
    for decision, instead, option, workload in _others(framed):
        other = replace(frame(framed.scenario.serving(workload)), cache_losses=framed.cache_losses)
        then = _best(other)
        bytes_more = other.costs.memory(now.subnet).total_bytes - framed.costs.memory(now.subnet).total_bytes
        own = _more(other.cache_kl, framed.cache_kl)
        before, after = (one.costs.latency(now.subnet) for one in (framed, other))
        made = Margin(
            decision, instead, option, bytes_more, own, _more(_kl(other, then), _kl(framed, now)),
            tpot_ms=round(after.tpot_ms - before.tpot_ms, 6), ttft_ms=round(after.ttft_ms - before.ttft_ms, 6),
        )  # fmt: skip
        least = max(ALIKE_KL, 2 * (_doubt(framed, now) + _doubt(other, then)))
        if decision == GPU_LAYERS or made.weights_kl is None or abs(made.weights_kl) >= least:
            found.append(made)
    return tuple(found[:MOST])


def said(one: Margin) -> str:
    """A line for a person."""
    size = readable("bytes", abs(one.memory_bytes))
    if one.decision == GPU_LAYERS:
        number = "one more layer" if int(one.option) > int(one.instead) else "one layer fewer"
        takes = "takes" if one.memory_bytes >= 0 else "frees"
        time = f"{readable('ms', abs(one.tpot_ms))} {_way(one.tpot_ms)} a token"
        return f"{number} on the GPU {takes} {size} there, {time}: {_result(one, 'KL')}"
    if one.decision == CONTEXT:
        more = int(one.option) - int(one.instead)
        return f"{more} more tokens of context take {size}: {_result(one, 'KL')}"
    freed = "would free" if one.memory_bytes < 0 else "would take"
    begin = f"{one.option} keys and values {freed} {size}"
    if abs(one.ttft_ms) >= LEAST_MS:
        begin += f", take {readable('ms', abs(one.ttft_ms))} {_way(one.ttft_ms)} to the first token"
    if one.own_kl is None:
        return f"{begin}: {_result(one, 'KL of the weights')}; --kv-cache auto measures theirs"
    own = f"{abs(one.own_kl):.4f} {_way(one.own_kl)}"
    return f"{begin} and lose {own} themselves: {_result(one, 'KL in all')}"


def _way(amount: float) -> str:
    return "more" if amount >= 0 else "less"


def _result(one: Margin, what: str) -> str:
    if one.weights_kl is None:
        return "nothing would keep the limits"
    total = one.weights_kl + (one.own_kl or 0.0)
    if abs(total) < ALIKE_KL:
        return f"{what} the same (predicted)"
    return f"{what} {abs(total):.4f} {_way(total)} (predicted)"


def _others(framed: Framed) -> Iterator[tuple[str, str, str, Workload]]:
    """Each other way: the decision, what it is now, what it would be, and the workload that says so."""
    workload, runtime, spec = framed.scenario.workload, framed.scenario.runtime, framed.scenario.files.spec
    numbers, layers = runtime.placements(spec, framed.scenario.device), workload.gpu_layers
    for other_layers in () if layers is None else (layers + 1, layers - 1):
        if other_layers in numbers:
            yield GPU_LAYERS, f"{layers}", f"{other_layers}", replace(workload, gpu_layers=other_layers)
    more = min(workload.context + workload.context // 2, spec.max_context)
    if more > workload.context:
        yield CONTEXT, str(workload.context), str(more), replace(workload, context=more)
    cache, holding = runtime.cache(workload), runtime.holding(spec)
    for other in runtime.caches:
        if other != cache and holding.cache_refusal(other) is None:
            yield KV_CACHE, cache.name, other.name, replace(workload, kv_cache=other.name)


def _best(framed: Framed) -> Solution | None:
    problem = framed.problem
    return solve(problem.space, problem.loss, problem.resources)


def _kl(framed: Framed, found: Solution | None) -> float | None:
    """What the weights lose then, predicted; None where nothing keeps the limits."""
    return None if found is None else float(framed.problem.additive(found.subnet))


def _doubt(framed: Framed, found: Solution | None) -> float:
    """By how much there might be less to lose than was found in the time that there was."""
    if found is None or found.proven:
        return 0.0
    return math.inf if found.gap is None else found.gap * abs(framed.problem.additive(found.subnet))


def _more(then: float | None, now: float | None) -> float | None:
    """In few digits: packages of equal plans are equal, wherever they were made."""
    return None if then is None or now is None else round(then - now, 6)
