"""What is decided beside the weights: how keys and values are kept, and how many layers are on a GPU.

An option has a loss and what it takes of each resource, as a unit's choice has, and one exact program holds all of
them: a smaller cache is worth its loss where the weights make more of the room. What is left to search is the weights.

Keys and values are one decision for all layers: llama.cpp and ONNX Runtime's generator keep them in one type. How many
layers are on a GPU, and the others on its host, changes what every unit takes of which memory: each number is a program
of its own (`planner.place`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from planner.frame import Framed, beside_kl, frame, placed
from planner.least import smallest_solution
from planner.place import best_placement
from planner.request import Workload
from planner.runtimes.base import Runtime
from planner.runtimes.caches import CacheType, caches_asked
from planner.scenario import Scenario
from planner.search.base import Decision, Option, Problem, Resource
from planner.search.program import solve
from records.errors import InputError, NotInstalledError
from supernet.spec import ModelSpec

KV_CACHE = "kv-cache"
NUMBERS = range(2, 9)  # of GPUs in one machine

CacheLoss = Callable[[Runtime, CacheType], float]
"""What keys and values lose that a runtime keeps so, nats per token. InputError or NotInstalledError where that cannot
be known."""


def decide(scenario: Scenario, cache_loss: CacheLoss | None = None) -> Framed:
    """The problem of the weights, with all that the workload leaves open decided. As `planner.frame.frame`.

    Where no way keeps the limits it is a problem that has all of them, and no solution.
    """
    runtime, workload = scenario.runtime, scenario.workload
    caches = checked_caches(runtime, scenario.files.spec, workload)
    losses = {cache: _loss_of(runtime, cache, cache_loss) for cache in caches}
    known = [cache for cache, loss in losses.items() if isinstance(loss, float)]
    lines = [f"{loss}: not taken" for loss in losses.values() if isinstance(loss, str)]
    if not known:
        cache = caches[0]
        known, lines = [cache], [f"{losses[cache]}: no KL of this plan has it, `verify` measures with it"]
    by_name = {cache.name: loss for cache, loss in losses.items() if isinstance(loss, float)}
    ways = []
    for cache in known:
        unasked = None if cache == runtime.caches[0] else cache.name
        named = workload if workload.kv_cache in (None, cache.name) else replace(workload, kv_cache=unasked)
        one = frame(scenario.serving(named))
        ways.append(replace(one, cache_losses=by_name, notes=(*one.notes, *lines)))
    spec, device = scenario.files.spec, scenario.device
    numbers = runtime.placements(spec, device) if workload.gpu_layers is None else ()
    return _best(ways) if not numbers else _placed(ways, numbers)


def other_caches(framed: Framed) -> tuple[str, ...]:
    """The types of cache that would keep the limits which the one that was asked for does not; none where planning had
    them all."""
    scenario, workload, runtime = framed.scenario, framed.scenario.workload, framed.scenario.runtime
    asked, holding = runtime.cache(workload), runtime.holding(scenario.files.spec)
    found = []
    for cache in () if framed.problem.decisions else runtime.caches:
        if cache == asked or holding.cache_refusal(cache) is not None:
            continue
        other = frame(scenario.serving(replace(workload, kv_cache=cache.name))).problem
        if solve(other.space, other.loss, other.resources) is not None:
            found.append(cache.name)
    return tuple(found)


def more_gpus(framed: Framed) -> int | None:
    """The fewest GPUs, more than were asked for, over which the limits are kept; None where none of `NUMBERS` would
    do."""
    scenario, workload = framed.scenario, framed.scenario.workload
    for gpus in NUMBERS if not scenario.device.shares_memory else ():
        try:
            other = frame(scenario.serving(replace(workload, gpus=gpus))).problem if gpus > workload.gpus else None
        except InputError:  # which cannot be divided so
            continue
        if other is not None and solve(other.space, other.loss, other.resources) is not None:
            return gpus
    return None


def could_spill(framed: Framed) -> bool:
    """Whether the device is a GPU whose layers could be left on a host, if one were named."""
    scenario, device = framed.scenario, framed.scenario.device
    alone = device.host is None and not device.shares_memory
    return alone and bool(scenario.runtime.placements(scenario.files.spec, device))


def _best(ways: Sequence[Framed]) -> Framed:
    """The one that loses least together with the best weights for it."""
    if len(ways) == 1:
        return ways[0]
    joint, most = _joint(ways), _most_sum(ways[0])
    found = None if most is None else smallest_solution(joint, most)
    found = found or solve(joint.space, joint.loss, joint.resources, joint.decisions)
    if found is None:
        return replace(ways[0], problem=joint)
    taken = [option.name for option in joint.decisions[0].options].index(found.options[0].name)
    return ways[taken]


def _joint(ways: Sequence[Framed]) -> Problem:
    """The problem of the weights together with the type of cache, where there are several `ways` to keep it."""
    if len(ways) == 1:
        return ways[0].problem
    names = [way.scenario.runtime.cache(way.scenario.workload).name for way in ways]
    open_to = options(names, [way.cache_kl or 0.0 for way in ways], [way.problem.resources for way in ways])
    return replace(ways[0].problem, decisions=(Decision(KV_CACHE, open_to),))


def _most_sum(framed: Framed) -> float | None:
    """What weights and cache may lose together where the loss is limited."""
    most, floats = framed.limits.max_kl, beside_kl(replace(framed, cache_losses={}))
    return None if most is None else most - floats


def _placed(ways: Sequence[Framed], numbers: Sequence[int]) -> Framed:
    """With the number of layers on the GPU that `planner.place` takes."""
    by_number = [[placed(way, number) for way in ways] for number in numbers]
    return _best(by_number[best_placement([_joint(each) for each in by_number], _most_sum(ways[0]))])


def options(
    names: Sequence[str], losses: Sequence[float], resources: Sequence[Sequence[Resource]]
) -> tuple[Option, ...]:
    """Ways whose resources differ in what no unit takes part in, as options beside the first of them."""
    first = {resource.name: resource.constant for resource in resources[0]}
    taken = ({resource.name: resource.constant - first[resource.name] for resource in each} for each in resources)
    return tuple(Option(*one) for one in zip(names, losses, taken, strict=True))


def checked_caches(runtime: Runtime, spec: ModelSpec, workload: Workload) -> tuple[CacheType, ...]:
    """How the runtime may keep the keys and values of a workload. InputError where it has no such type, or none for
    this model."""
    asked = caches_asked(workload.kv_cache, runtime.caches, runtime.name)
    holding = runtime.holding(spec)
    refusals = {cache: holding.cache_refusal(cache) for cache in asked}
    able = tuple(cache for cache, refusal in refusals.items() if refusal is None)
    if not able:
        others = ", ".join(one.name for one in runtime.caches if holding.cache_refusal(one) is None)
        raise InputError(
            f"{runtime.name} cannot keep {asked[0].name} keys and values of {spec.name}: {refusals[asked[0]]}; "
            f"use {others}"
        )
    return able


def _loss_of(runtime: Runtime, cache: CacheType, cache_loss: CacheLoss | None) -> float | str:
    """What a type of cache loses, or the beginning of a line that says why that is not known."""
    if not cache.rounds:
        return 0.0
    why = "nothing is measured for this plan"
    try:
        if cache_loss is not None:
            return max(0.0, cache_loss(runtime, cache))
    except (InputError, NotInstalledError) as error:
        why = str(error)
    return f"what {cache.name} keys and values lose is not known ({why})"
