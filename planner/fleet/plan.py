"""Planning for many devices: every distinct problem is searched once, every distinct subnet measured once, and the
fewest packages are chosen that serve each device nearly as well as its own best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial

from planner.beside import with_stock
from planner.choose import choose
from planner.decide import CacheLoss, could_spill, more_gpus, other_caches
from planner.fleet.cover import fewest
from planner.fleet.fleetfile import Fleet, Wanted, in_keys
from planner.fleet.index import loss_of, package_name
from planner.frame import Framed, beside_kl, check_servable, renamed
from planner.pipeline import decided, measured
from planner.plan import PLANNED, Plan
from planner.propose import TRIALS, Proposed, propose
from planner.quality import Measure, Quality
from planner.request import DEFAULT_CONTEXT, DEFAULT_PROMPT_TOKENS, ContextRange, Workload
from planner.runtimes import AUTO, RUNTIMES, Installed, installed
from planner.runtimes.base import Progress, Runtime
from planner.scenario import PlanSource, Scenario
from planner.search.base import Candidate, Problem
from planner.shortage import budget_error
from profiles.cpu import profile_cpu
from records.child import workers
from records.errors import InputError
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Subnet
from supernet.spec import ModelSpec

ALONE = 3
"""Problems that are searched in this process: starting others takes as long."""


@dataclass(frozen=True)
class Kind:
    """What devices must have in common to take the same package. `threads` are those that a measured device's times
    are promised with; None where nothing was measured, and the runtime takes what there is. `kv_cache` is None where
    the runtime keeps keys and values as it does unasked."""

    runtime: str
    context: int
    batch: int
    threads: int | None = None
    kv_cache: str | None = None
    gpu_layers: int | None = None
    gpus: int = 1


@dataclass(frozen=True)
class Member:
    """A device and its plan, whose chosen subnet is that of its package; `best` is the subnet that it would have by
    itself and `best_kl` what that loses. Without a plan, `refused` says why in a line, and with which budget it would
    be served."""

    wanted: Wanted
    workload: Workload
    plan: Plan | None = None
    best: Subnet | None = None
    best_kl: float = 0.0
    refused: str = ""

    @property
    def kl(self) -> float:
        """What its package loses: measured where something was measured, else predicted."""
        assert self.plan is not None
        return loss_of(self.plan.chosen).kl


@dataclass(frozen=True)
class Shared:
    """A package to write, and the plan of each device that takes it, in the fleet's order."""

    name: str
    kind: Kind
    members: tuple[Member, ...]

    @property
    def plans(self) -> dict[str, Plan]:
        return {member.wanted.name: member.plan for member in self.members if member.plan is not None}

    @property
    def subnet(self) -> Subnet:
        return next(iter(self.plans.values())).subnet


@dataclass(frozen=True)
class FleetPlan:
    """`gap` is the share by which fewer packages might do, 0 where their number is proven the least. `absent` are
    runtimes that are not installed and might have served a device that names none, with what to install."""

    members: tuple[Member, ...]
    packages: tuple[Shared, ...]
    max_loss: float
    gap: float
    problems: int
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def refused(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.plan is None)


def plan_fleet(
    files: PlanSource,
    fleet: Fleet,
    runtime_of: Callable[[str], Runtime],
    measure: Measure | None = None,
    trials: int = TRIALS,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
    cache_loss: CacheLoss | None = None,
) -> FleetPlan:
    """A plan for each device of `fleet`, and the packages that they share.

    A device that cannot be served is refused with its reason, and the others go on. InputError or MissingError where
    nothing can be planned for anybody, because of the supernet.
    """
    report = progress or (lambda what, share: None)
    table = SensitivityTable.load(files.path / SENSITIVITY_FILE)
    here = installed() if any(wanted.runtime == AUTO for wanted in fleet.devices) else None
    ways = [list(_ways(wanted, here)) for wanted in fleet.devices]
    flat = [way for each in ways for way in each]
    runtimes = {name: runtime_of(name) for name in dict.fromkeys(way.runtime for way in flat)}
    _check_any(files, table, list(runtimes.values()))
    framed = list(_all_framed(files, table, runtimes, flat, cache_loss))
    report("searching", 0.0)
    distinct = list(_distinct([one for one in framed if isinstance(one, Framed)]))
    problems = [one.problem for one in distinct]
    found = _proposed(distinct, trials, seed, partial(report, "searching"))
    caches = cache(lambda number: other_caches(distinct[number]))
    ends = iter(
        [_end(one, wanted, files.spec, problems, found, caches) for one, wanted in zip(framed, flat, strict=True)]
    )
    tried = [[next(ends) for _ in each] for each in ways]
    qualities = measured([one.proposed for each in tried for one in _served(each)], measure)
    devices = [_best(each, qualities) for each in tried]
    report("choosing packages", 1.0)
    made = _covered(devices, qualities, fleet.max_loss, len(problems), command)
    return replace(made, absent=_absent(fleet.devices, here))


def _ways(wanted: Wanted, here: Installed | None) -> Iterator[Wanted]:
    """The device with each runtime that may serve it: the one that is named, or with AUTO each that is able."""
    if here is None or wanted.runtime != AUTO:
        yield wanted
        return
    names = [runtime.name for runtime in here.on(wanted.profile).found]
    for name in names or list(RUNTIMES):  # without any, each will say why
        yield replace(wanted, runtime=name)


def _absent(devices: Sequence[Wanted], here: Installed | None) -> dict[str, str]:
    """What is missing of the runtimes that run on the devices which name none."""
    missing: dict[str, str] = {}
    for wanted in devices if here is not None else ():
        if wanted.runtime == AUTO and here is not None:
            missing |= here.on(wanted.profile).missing
    return missing


def _best(ways: Sequence[_Served | _Refused], qualities: Mapping[Subnet, Quality]) -> _Served | _Refused:
    """The runtime that `planner.pipeline` would take: with the longest context, where that was left open, whose own
    best plan loses least, of equals the faster; where none serves the device, all their reasons."""
    served = _served(ways)
    if served:
        return min(served, key=lambda one: _rank(one, qualities))
    refused = [one for one in ways if isinstance(one, _Refused)]
    lines = dict.fromkeys(one.why for one in refused)
    named = (f"{one.wanted.runtime}: {one.why}" for one in refused)
    return replace(refused[0], why=next(iter(lines)) if len(lines) == 1 else "; ".join(named))


def _rank(one: _Served, qualities: Mapping[Subnet, Quality]) -> tuple[float, ...]:
    """By the loss of the device's own best plan, its runtime's rounding of activations included."""
    framed = one.framed
    losses = {subnet: _loss(framed, subnet, qualities) for subnet in one.proposed.subnets}
    loss, best = min(((loss, subnet) for subnet, loss in losses.items() if loss is not None), key=lambda pair: pair[0])
    return -one.workload.context, loss + beside_kl(framed), framed.costs.latency(framed.tied(best)).tpot_ms


def _check_any(files: PlanSource, table: SensitivityTable, runtimes: Sequence[Runtime]) -> None:
    """InputError where the supernet is for none of these: that is no device's fault, and no budget mends it."""
    errors = []
    for runtime in runtimes:
        try:
            check_servable(files, table, runtime)
        except InputError as error:
            errors.append(error)
    if len(errors) == len(runtimes) > 0:
        raise errors[0]


def _all_framed(
    files: PlanSource,
    table: SensitivityTable,
    runtimes: Mapping[str, Runtime],
    devices: Sequence[Wanted],
    cache_loss: CacheLoss | None,
) -> Iterator[Framed | str]:
    """The problem of each device, or why it has none; devices that differ in their names alone are framed once."""
    known: dict[Wanted, Framed] = {}
    for wanted in devices:
        nameless = replace(wanted, name="any", device="any", profile=replace(wanted.profile, name="any"))
        if nameless not in known:
            found = _framed(files, table, runtimes[wanted.runtime], wanted, cache_loss)
            if isinstance(found, Framed):
                known[nameless] = found
            yield found
            continue
        yield renamed(known[nameless], replace(wanted.profile, name=wanted.name))


def _framed(
    files: PlanSource, table: SensitivityTable, runtime: Runtime, wanted: Wanted, cache_loss: CacheLoss | None
) -> Framed | str:
    """The device's problem, or why it has none."""
    try:
        workload, contexts = wanted.asked.of(files.spec)
        device = replace(wanted.profile, name=wanted.name)
        return decided(Scenario(files, table, runtime, device, workload, wanted.budget), cache_loss, contexts)
    except InputError as error:
        return in_keys(str(error))


def _distinct(framed: Sequence[Framed]) -> Iterator[Framed]:
    """Each problem once: devices that differ in what no limit sees are alike."""
    seen: list[Problem] = []
    for one in framed:
        if one.problem not in seen:
            seen.append(one.problem)
            yield one


def _proposed(framed: Sequence[Framed], trials: int, seed: int, report: Callable[[float], None]) -> list[Proposed]:
    """Of each problem what was found, in its own units."""
    search = partial(propose, trials=trials, seed=seed)
    problems, specs = [one.problem for one in framed], [one.costs.spec for one in framed]
    found: list[Proposed] = []

    def kept(results: Iterator[Proposed]) -> list[Proposed]:
        for one in results:
            found.append(one)
            report(len(found) / len(problems))
        return found

    if len(problems) <= ALONE:
        return kept(map(search, problems, specs))
    with workers(min(len(problems), profile_cpu(measure_bandwidth=False).threads or 1)) as pool:
        return kept(pool.map(search, problems, specs))


@dataclass(frozen=True)
class _Served:
    """A device whose problem has proposals; those are in the supernet's units."""

    wanted: Wanted
    framed: Framed
    proposed: Proposed

    @property
    def workload(self) -> Workload:
        return self.framed.scenario.workload

    @property
    def kind(self) -> Kind:
        profile, workload = self.wanted.profile, self.workload
        threads = profile.threads if profile.measured else None
        unasked = workload.kv_cache == self.framed.scenario.runtime.caches[0].name
        kept = None if unasked else workload.kv_cache
        layers, gpus = workload.gpu_layers, workload.gpus
        return Kind(self.wanted.runtime, workload.context, workload.batch, threads, kept, layers, gpus)


@dataclass(frozen=True)
class _Refused:
    """A device that is not served, and why in a line."""

    wanted: Wanted
    workload: Workload
    why: str


def _served(ends: Sequence[_Served | _Refused]) -> list[_Served]:
    return [one for one in ends if isinstance(one, _Served)]


def _asked(wanted: Wanted, spec: ModelSpec) -> Workload:
    """Also where it is refused."""
    asked, context = wanted.asked, wanted.asked.context
    if isinstance(context, ContextRange):
        context = context.of(spec, asked.prompt_tokens).shortest
    context = max(2, context or min(DEFAULT_CONTEXT, spec.max_context))
    prompt = min(asked.prompt_tokens or DEFAULT_PROMPT_TOKENS, max(1, context // 2))
    return Workload(context, asked.batch, prompt, asked.kv_cache, asked.gpu_layers, asked.gpus)


def _end(
    framed: Framed | str, wanted: Wanted, spec: ModelSpec, problems: Sequence[Problem], found: Sequence[Proposed],
    caches: Callable[[int], tuple[str, ...]],
) -> _Served | _Refused:  # fmt: skip
    if isinstance(framed, str):
        return _Refused(wanted, _asked(wanted, spec), framed)
    number = problems.index(framed.problem)
    proposed = found[number]
    if proposed.finalists:
        return _Served(wanted, framed, with_stock(framed, proposed).apart(framed))
    spills, gpus = could_spill(framed), more_gpus(framed)
    refusal = budget_error(framed.problem, framed.most, wanted.name, caches(number), spills, gpus)
    return _Refused(wanted, _asked(wanted, spec), in_keys(str(refusal)))


def _covered(
    devices: Sequence[_Served | _Refused], qualities: Mapping[Subnet, Quality], max_loss: float, problems: int,
    command: str,
) -> FleetPlan:  # fmt: skip
    members = {
        one.wanted.name: Member(one.wanted, one.workload, refused=one.why)
        for one in devices
        if isinstance(one, _Refused)
    }
    packages: list[Shared] = []
    least, most, served = 0.0, 0, _served(devices)
    for kind in dict.fromkeys(one.kind for one in served):
        same = [one for one in served if one.kind == kind]
        candidates = _candidates([one for one in served if one.wanted.runtime == kind.runtime])
        rows: dict[int, list[float | None]] = {}  # by problem: alike devices share one
        for one in same:
            if id(one.framed.problem) not in rows:
                rows[id(one.framed.problem)] = [_loss(one.framed, subnet, qualities) for subnet in candidates]
        losses = [rows[id(one.framed.problem)] for one in same]
        cover = fewest(losses, max_loss)
        subnets = list(candidates)
        for one, row, number in zip(same, losses, cover.takes, strict=True):
            best = min((loss, place) for place, loss in enumerate(row) if loss is not None)
            members[one.wanted.name] = _member(
                one, subnets[number], subnets[best[1]], best[0], candidates, qualities, command
            )
        for number in dict.fromkeys(cover.takes):
            taking = [members[one.wanted.name] for one, n in zip(same, cover.takes, strict=True) if n == number]
            packages.append(_shared(kind, taking))
        count = len(set(cover.takes))
        least, most = least + count * (1 - cover.gap), most + count
    ordered = tuple(members[one.wanted.name] for one in devices)
    return FleetPlan(ordered, tuple(packages), max_loss, 1 - least / most if most else 0.0, problems)


def _candidates(served: Sequence[_Served]) -> dict[Subnet, Candidate]:
    """Every finalist of these devices, once, under the first name that it was proposed by."""
    found: dict[Subnet, Candidate] = {}
    for one in served:
        for _, candidate in one.proposed.finalists:
            found.setdefault(candidate.subnet, candidate)
    return found


def _loss(framed: Framed, subnet: Subnet, qualities: Mapping[Subnet, Quality]) -> float | None:
    """What `subnet`, which the runtime can load, loses where it keeps the limits."""
    problem, tied = framed.problem, framed.tied(subnet)
    if tied not in problem.space or not problem.feasible(tied):
        return None
    found = qualities.get(subnet)
    return max(0.0, problem.value(tied) if found is None else float(found["kl"]))


def _member(
    one: _Served, subnet: Subnet, best: Subnet, best_kl: float, candidates: Mapping[Subnet, Candidate],
    qualities: Mapping[Subnet, Quality], command: str,
) -> Member:  # fmt: skip
    """The device's own plan, but with its package's subnet as the one chosen."""
    finalists = list(one.proposed.finalists)
    for extra in (best, subnet):
        if all(candidate.subnet != extra for _, candidate in finalists):
            found = candidates[extra]
            loss = one.framed.problem.value(one.framed.tied(extra))
            finalists.append((PLANNED, replace(found, loss=loss, source=f"{found.source}, for another device")))
    plan = choose(one.framed, replace(one.proposed, finalists=tuple(finalists)), qualities, command, subnet)
    return Member(one.wanted, one.workload, plan, best, best_kl)


def _shared(kind: Kind, members: Sequence[Member]) -> Shared:
    plan = members[0].plan
    assert plan is not None
    name = package_name(
        str(plan.model["name"]), plan.chosen.mean_bits, plan.subnet, kind.runtime,
        replace(plan.workload, kv_cache=kind.kv_cache), kind.threads,
    )  # fmt: skip
    return Shared(name, kind, tuple(members))
