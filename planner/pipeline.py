"""The four stages of planning joined: frame, propose, measure, choose. Nothing here imports torch.

One device is a fleet of one: `planner.fleet` joins the same stages for many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from planner.beside import front, notches, rejected, stock_of, with_stock
from planner.choose import choose
from planner.context import with_longest_context
from planner.decide import CacheLoss, could_spill, decide, more_gpus, other_caches
from planner.frame import Framed, beside_kl
from planner.front import measured_front, with_best
from planner.margins import margins
from planner.plan import CANNOT, LARGER, NOT_INSTALLED, OVER, SHORTER, SLOWER, WORSE, Other, Plan, Point, Tuned
from planner.propose import TOP, TRIALS, Proposed, propose
from planner.quality import Measure, Measured, Quality, as_quality, measured_on
from planner.request import Budget, ContextRange, Workload
from planner.room import context_room
from planner.runtimes.base import Runtime
from planner.scenario import PlanSource, Scenario
from planner.shortage import budget_error
from planner.smallest import within_loss
from profiles.device import DeviceProfile
from records.errors import BudgetError, InputError
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Subnet

Deepen = Callable[[Framed, Proposed], Proposed]
"""More finalists, from those that are there; in the problem's units, as all of them are."""


@dataclass(frozen=True)
class Own:
    """Scales of a plan's own: how they were made, the supernet's fingerprint with them, what the subnet loses with
    them."""

    tuned: Tuned
    fingerprint: str
    measured: Measured


Tune = Callable[[Plan], Own | str]
"""Trains the scales of a plan's subnet for it alone; a line where that won nothing."""


def plan(
    files: PlanSource,
    runtime: Runtime,
    device: DeviceProfile,
    workload: Workload,
    budget: Budget,
    measure: Measure | None = None,
    trials: int = TRIALS,
    seed: int = 0,
    top: int = TOP,
    command: str = "",
) -> Plan:
    """The subnet that loses least on `device` within `budget`, with its evidence: `plan_any` with one runtime."""
    return plan_any(files, (runtime,), device, workload, budget, measure, trials, seed, top, command)


def plan_any(
    files: PlanSource,
    runtimes: Sequence[Runtime],
    device: DeviceProfile,
    workload: Workload,
    budget: Budget,
    measure: Measure | None = None,
    trials: int = TRIALS,
    seed: int = 0,
    top: int = TOP,
    command: str = "",
    absent: Mapping[str, str] | None = None,
    deepen: Deepen | None = None,
    drawn: bool = False,
    cache_loss: CacheLoss | None = None,
    tune: Tune | None = None,
    contexts: ContextRange | None = None,
) -> Plan:
    """The runtime and the subnet that lose least on `device` within `budget`, with their evidence; of equals the
    faster. Where the budget limits the loss, those that take least memory.

    What a runtime's rounding of activations costs counts where it is known, and what `cache_loss` says of the type of
    KV cache, which is decided with the weights where `workload` leaves it open. `absent` are runtimes that may not be
    taken, with the reason; they are listed with the others.

    With `contexts` the longest of them is taken that the limits leave room for, and the runtime that has the longest.

    `deepen` searches on from the finalists of the runtime that was taken, and what it finds is measured with them. So
    is a front that it finds, and what loses least of that is a finalist.

    `tune` trains on what was chosen, last of all: what stands beside the plan is without it.

    A plan that shall be `drawn` has the front of loss over memory too, which takes more solving.

    `measure` is given the finalists and the best uniform subnet, and returns what each loses on text that did not
    train; without it the predictions decide. Raises BudgetError when nothing meets the budget, InputError for a model
    or a context that cannot be served, MissingError without sensitivities.
    """
    workload.check(files.spec)
    table = SensitivityTable.load(files.path / SENSITIVITY_FILE)
    refused: dict[str, InputError | BudgetError] = {}
    found: dict[str, tuple[Framed, Proposed]] = {}
    beside: list[Subnet] = []  # what is measured and no finalist
    for runtime in runtimes:
        scenario = Scenario(files, table, runtime, device, workload, budget)
        try:
            framed = decided(scenario, cache_loss, contexts, measure, seed)
            framed, proposed, tried = _proposed(framed, measure, trials, seed, top)
        except (InputError, BudgetError) as error:
            refused[runtime.name] = error
        else:
            found[runtime.name] = framed, proposed
            beside += tried
    if not found:
        raise _refusal(refused)
    finalists = {name: proposed.apart(framed) for name, (framed, proposed) in found.items()}
    beside += [framed.apart(stock[1]) for framed, _ in found.values() if (stock := stock_of(framed)) is not None]
    qualities = measured(finalists.values(), measure, beside)
    plans = {name: choose(framed, finalists[name], qualities, command) for name, (framed, _) in found.items()}
    losses = {name: _loss(plans[name], framed) for name, (framed, _) in found.items()}
    ranks = {name: _rank(plans[name], losses[name]) for name in plans}
    best = min(plans, key=ranks.__getitem__)
    framed, points = found[best][0], tuple[Point, ...]()
    if deepen is not None:
        deeper = deepen(*found[best]).apart(framed)
        qualities |= measured([deeper], measure, [one.subnet for _, one in deeper.front])
        plans[best] = choose(framed, with_best(deeper, qualities), qualities, command)
        points = measured_front(framed, plans[best], deeper.front, qualities) if deeper.front else ()
    taken = _with_what_stands_beside(framed, plans[best], qualities)
    taken = replace(taken, front=points or (front(framed) if drawn else ()))
    least = _loss(taken, framed)
    others = [
        _other(plans[name], losses[name], taken, least) for name in sorted(plans, key=ranks.__getitem__) if name != best
    ]
    others += [Other(name, f"{error}", _code(error)) for name, error in refused.items()]
    others += [Other(name, line, NOT_INSTALLED) for name, line in (absent or {}).items() if name not in refused]
    taken = replace(taken, others=tuple(others))
    return taken if tune is None else with_own(taken, tune(taken))


def decided(
    scenario: Scenario, cache_loss: CacheLoss | None, contexts: ContextRange | None, measure: Measure | None = None,
    seed: int = 0,
) -> Framed:  # fmt: skip
    """The problem of the weights, with all else settled, the context too where there are several."""

    def of(context: int) -> Framed:
        return decide(scenario.serving(replace(scenario.workload, context=context)), cache_loss)

    return decide(scenario, cache_loss) if contexts is None else with_longest_context(contexts, of, measure, seed)


def _proposed(
    framed: Framed, measure: Measure | None, trials: int, seed: int, top: int
) -> tuple[Framed, Proposed, tuple[Subnet, ...]]:
    """The finalists of a problem, with its limits as they were planned to, and every subnet of the supernet that was
    measured on the way. BudgetError where nothing meets the budget."""
    budget, tried = framed.scenario.budget, tuple[Subnet, ...]()
    if budget.max_kl is not None:
        framed, proposed, tried = within_loss(framed, measure, seed)
    else:
        proposed = propose(framed.problem, framed.costs.spec, trials, seed, top)
    if not proposed.finalists:
        name, caches = framed.scenario.device.name, other_caches(framed)
        raise budget_error(framed.problem, framed.most, name, caches, could_spill(framed), more_gpus(framed))
    return framed, with_stock(framed, proposed), tried


def with_own(taken: Plan, own: Own | str) -> Plan:
    """The plan that was taken with scales of its own, or the line that says why not; what it is compared with is
    measured without."""
    if isinstance(own, str):
        return replace(taken, notes=(*taken.notes, own))
    before, now = (tuple(measured_on(measured)) for measured in (taken.chosen.measured, own.measured))
    said = dict(zip(before, now, strict=True))
    return replace(
        taken,
        compared=(replace(taken.chosen, measured=cast(Measured, dict(own.measured))), *taken.compared[1:]),
        notes=tuple(said.get(note, note) for note in taken.notes),
        fingerprint=own.fingerprint,
        tuned=own.tuned,
    )


def _with_what_stands_beside(framed: Framed, made: Plan, qualities: Mapping[Subnet, Quality]) -> Plan:
    return replace(
        made,
        context_room=context_room(framed, made.subnet),
        rejected=rejected(framed, made, qualities),
        notches=notches(framed, made),
        margins=margins(framed),
    )


def _code(error: InputError | BudgetError) -> str:
    return OVER if isinstance(error, BudgetError) else CANNOT


def _loss(made: Plan, framed: Framed) -> float:
    """Nats a token that a plan's package loses."""
    return max(0.0, made.chosen.kl) + beside_kl(framed)


def _rank(made: Plan, loss: float) -> tuple[float, ...]:
    """The longest context first, which differs where it was left open."""
    chosen = made.chosen
    best = (loss, chosen.tpot_ms) if made.budget.max_kl is None else (chosen.memory_bytes, loss)
    return (-made.workload.context, *best)


def _other(made: Plan, kl: float, taken: Plan, least: float) -> Other:
    """A plan that loses `kl` and was not taken, in a row; the one that was `taken` loses the `least`."""
    chosen = made.chosen
    if made.workload.context < taken.workload.context:
        reason = SHORTER
    elif made.budget.max_kl is not None:
        reason = LARGER
    else:
        reason = SLOWER if kl == least else WORSE
    return Other(
        runtime=made.runtime,
        reason=reason,
        kl=kl,
        memory_bytes=chosen.memory_bytes,
        memory_basis=made.memory.basis,
        disk_bytes=chosen.disk_bytes,
        tpot_ms=chosen.tpot_ms,
        ttft_ms=chosen.ttft_ms,
        latency_basis=made.latency.basis,
        context=None if made.workload.context == taken.workload.context else made.workload.context,
    )


def _refusal(refused: Mapping[str, InputError | BudgetError]) -> InputError | BudgetError:
    """One error for all: a budget's where any runtime could serve within a larger one."""
    errors = list(refused.values())
    if len({str(error) for error in errors}) == 1:
        return errors[0]
    kind = BudgetError if any(isinstance(error, BudgetError) for error in errors) else InputError
    return kind("no runtime serves this: " + "; ".join(f"{name}: {error}" for name, error in refused.items()))


def measured(
    proposed: Iterable[Proposed], measure: Measure | None, beside: Sequence[Subnet] = ()
) -> dict[Subnet, Quality]:
    """What every distinct finalist, and what stands `beside` them, was measured to lose: all in one call, which loads
    weights once. {} without `measure`."""
    subnets = list(dict.fromkeys([*(subnet for one in proposed for subnet in one.subnets), *beside]))
    if measure is None or not subnets:
        return {}
    return dict(zip(subnets, map(as_quality, measure(subnets)), strict=True))
