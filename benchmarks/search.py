"""Searches beside each other at equal bytes and equal evaluations: KL on two kinds of text that none of them saw.

    python benchmarks/search.py SUPERNET --text ../shared/text [--bits 2.5 3.5] [--evaluations 60] [--seeds 0 1 2]
        [--device DEVICE --times 0.3 0.6]

A budget is bytes of the linears' codes, given as average bits, or time per token in llama.cpp on a device, given as a
share of the way from the fastest subnet to the uniform one of the most bits; embedding and head stay at their largest
choice.

Rules and sums measure nothing:

uniform    the widest uniform subnet within the budget
ends       the blocks nearest to the first and the last one are wider
roles      value projections, then down projections and outputs of attention, are wider in all blocks
greedy     sensitivities, the best gain for its bytes first
sum        the exact solution of the sensitivities; `planned` is the best finalist of `bitfleet plan`, measured
null       the exact solution of sensitivities that are permuted within each role, another permutation for each seed

The others measure as often as --evaluations says, each the same windows (the last ones of the text that trained, and
of the manual's part for adapters), a slope counting as three: `steps` along the slope from the finalists (what
`bitfleet plan --minutes` does), `nsga2` and `tpe` over prices of groups of units (Optuna's), `evolution`
(Once-for-All) and `shrink` (LLM-QFA), which begin with random subnets.

KL per token is from the full model. Windows of the unseen texts are taken in stretches, and two methods are compared on
the same ones; `line` is the log-linear interpolation between the uniform subnets around, of bytes alone.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from claims import Claim, finish, table
from mixtures import code_bits, line
from scipy.special import stdtrit

from commands import names
from planner.costs import Costs
from planner.frame import DEPTHS
from planner.limits import TPOT
from planner.propose import TRIALS, propose
from planner.request import Budget, Workload
from planner.runtimes import RUNTIMES
from planner.search import EvolutionSearch, ExactSearch, OptunaSearch, ShrinkSearch
from planner.search.base import Problem, Resource
from planner.search.measured import MeasuredSearch
from supernet.checkpoint import SupernetFiles, open_supernet
from supernet.evaluate import Reference, evaluate
from supernet.landscape import WINDOWS, MeasuredLandscape
from supernet.loading import load_model
from supernet.model import compute_dtype
from supernet.recipe import Recipe
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import UnitSpec
from supernet.stages.prepare import searching_windows
from supernet.text import manual_windows, read_windows

BITS = (2.25, 2.5, 2.75, 3.25, 3.5, 3.75)
SLOPE = 3  # evaluations that a slope costs: a pass forward and one backward
TOKENS, STRETCH = 512, 4  # of an unseen window, and windows that are read together
FEW = 3.0  # bits below which searching is to pay
GAIN, WORST = 0.9, 1.01  # KL of `steps` / of `sum`: on average below FEW, and anywhere
RULES = ("uniform", "ends", "roles", "greedy", "sum", "null", "planned")
MEASURING = ("steps", "nsga2", "tpe", "evolution", "shrink")
WIDER_ROLES = ("v", "down", "o")  # the first part of a role's name, the most sensitive first
PERMUTATIONS = 20  # that are tried before a plan is said to be the same under all
RUNTIME, CONTEXT = "llamacpp", 1024  # that limits of time are for


@dataclass(frozen=True)
class Limit:
    """A budget; `bits` a weight where it is one of bytes."""

    name: str
    resource: Resource
    bits: float | None = None


@dataclass(frozen=True)
class Row:
    """`kl` of each stretch of the unseen texts, one text after the other; `seen` on the windows that were searched."""

    limit: Limit
    method: str
    seed: int
    subnet: Subnet = field(repr=False)
    evaluations: int = 0
    seen: float | None = None
    kl: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        return fmean(self.kl)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("supernet", help="a folder that `bitfleet train` made")
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--bits", type=float, nargs="*", default=BITS)
    parser.add_argument("--device", help="as of `bitfleet plan`, for --times")
    parser.add_argument("--times", type=float, nargs="*", default=())
    parser.add_argument("--methods", nargs="+", choices=(*RULES, *MEASURING), default=(*RULES, *MEASURING))
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--windows", type=int, default=16, help="of each kind of unseen text")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    files = open_supernet(given.supernet)
    landscape, judge = measured_on(files, given.text, given.windows)
    uniform = {bits: files.space.uniform(files.spec, bits) for bits in files.space.bits(files.spec)}
    known = {bits: fmean(judge(subnet)) for bits, subnet in uniform.items()}
    rows = []
    space = searched(files)
    limits = [Limit(f"{bits:g} bits", code_bits(files.spec, space, bits), bits) for bits in given.bits]
    limits += [time_limit(files, space, given.device, share) for share in given.times]
    for limit in limits:
        for seed in given.seeds:
            found = rows_of(files, landscape, judge, limit, given.methods, given.evaluations, seed)
            print_rows(found, between(known, limit))
            rows += found
    evidence = {"supernet": files.fingerprint, "evaluations": given.evaluations, "uniform": known}
    finish(__file__, list(claims(rows)), rows=[record(row, between(known, row.limit)) for row in rows], **evidence)


def measured_on(
    files: SupernetFiles, text: Path, windows: int, searched_on: int = WINDOWS
) -> tuple[MeasuredLandscape, Judge]:
    """The supernet on so many windows to search on, and what judges on so many of each kind of unseen text, of which
    the `text` folder has one."""
    full = load_model(files.info["source"])
    seen = searching_windows(full.tokenizer, Recipe.from_json(files.info["recipe"]), searched_on)
    unseen = [
        Reference.of(full.model, kind[start : start + STRETCH])
        for kind in (
            read_windows(str(text / "eval.txt"), full.tokenizer, windows, TOKENS),
            manual_windows(full.tokenizer, windows, TOKENS, "measure"),
        )
        for start in range(0, len(kind), STRETCH)
    ]
    landscape = MeasuredLandscape(files.load(), Reference.of(full.model, seen, first=files.reference().first))
    return landscape, Judge(landscape, unseen)


def between(uniform: Mapping[int, float], limit: Limit) -> float:
    return math.nan if limit.bits is None else line(uniform, limit.bits)


def rows_of(
    files: SupernetFiles, landscape: MeasuredLandscape, judge: Judge, limit: Limit, methods: Sequence[str],
    evaluations: int, seed: int,
) -> list[Row]:  # fmt: skip
    problem = problem_of(files, limit.resource)
    rows = []
    for method in methods:
        meter = Meter(landscape)
        if method in MEASURING:
            subnet = measuring(files, problem, meter, method, evaluations, seed)
        else:
            subnet = ruled(files, problem, meter, method, seed)
        loss = min(meter.known.values()) if meter.known else None
        rows.append(Row(limit, method, seed, subnet, meter.cost, loss, judge(subnet)))
    return rows


# --- what measures nothing ----------------------------------------------------------------------------------------


def ruled(files: SupernetFiles, problem: Problem, meter: Meter, method: str, seed: int) -> Subnet:
    spec = files.spec
    if method == "planned":
        subnets = propose(problem, spec, TRIALS, seed).subnets
        return min(zip(meter.losses(subnets), subnets, strict=True), key=lambda pair: pair[0])[1]
    if method == "sum":
        return ExactSearch().search(problem).candidates[0].subnet
    if method == "null":
        return null(problem, files, seed)
    widest = next(
        subnet for bits in reversed(problem.space.bits(spec))
        if problem.feasible(subnet := problem.space.uniform(spec, bits))
    )  # fmt: skip
    if method == "uniform":
        return widest
    if method == "greedy":
        return filled(problem, problem.space.uniform(spec, problem.space.bits(spec)[0]), gain(problem))
    last = spec.num_layers - 1
    ranks: dict[str, Callable[[UnitSpec], float]] = {
        "ends": lambda unit: min(unit.layer or 0, last - (unit.layer or 0)),
        "roles": lambda unit: next((n for n, r in enumerate(WIDER_ROLES) if unit.role.split("_")[0] == r), 9),
    }
    rank = {unit.name: ranks[method](unit) for unit in spec.units}
    return filled(problem, widest, lambda unit, now, then: -rank[unit])


def gain(problem: Problem) -> Callable[[str, Choice, Choice], float]:
    """Sensitivity that goes for each byte, or part of a millisecond, that comes."""
    (resource,) = problem.resources

    def of(unit: str, now: Choice, then: Choice) -> float:
        more = resource.table[unit][then] - resource.table[unit][now]
        return (problem.loss[unit][now] - problem.loss[unit][then]) / more if more > 0 else math.inf

    return of


def filled(problem: Problem, subnet: Subnet, worth: Callable[[str, Choice, Choice], float]) -> Subnet:
    """Every unit one choice wider, what is worth most first and narrow units first, until nothing fits."""
    (memory,), now = problem.resources, dict(subnet)
    wider = {unit: dict(zip(choices, choices[1:], strict=False)) for unit, choices in problem.space}
    room = memory.limit - memory.amount(subnet)
    while True:
        steps = [(unit, now[unit], wider[unit][now[unit]]) for unit in now if now[unit] in wider[unit]]
        fits = [step for step in steps if memory.table[step[0]][step[2]] - memory.table[step[0]][step[1]] <= room]
        if not fits:
            return Subnet.of(now)
        unit, before, then = min(fits, key=lambda step: (-worth(*step), step[1].bits))
        room -= memory.table[unit][then] - memory.table[unit][before]
        now[unit] = then


def null(problem: Problem, files: SupernetFiles, seed: int) -> Subnet:
    """Of a few layers a permutation may make the same plan, and says nothing then: another one is drawn."""
    random, exact = np.random.default_rng(seed), ExactSearch()
    plain = exact.search(problem).candidates[0].subnet
    for _ in range(PERMUTATIONS):
        found = exact.search(permuted(problem, files, random)).candidates[0].subnet
        if found != plain:
            return found
    raise SystemExit("error: all permuted sensitivities make the same plan: the limit leaves nothing to choose")


def permuted(problem: Problem, files: SupernetFiles, random: np.random.Generator) -> Problem:
    """The same problem with each unit's losses those of another unit of its role."""
    by_role: dict[str, list[str]] = {}
    for unit in files.spec.units:
        by_role.setdefault(unit.role, []).append(unit.name)
    loss: dict[str, Any] = {}
    for units in by_role.values():
        others = random.permutation(len(units))
        loss |= {unit: problem.loss[units[other]] for unit, other in zip(units, others, strict=True)}
    return replace(problem, loss=loss)


# --- what measures ------------------------------------------------------------------------------------------------


@dataclass
class Meter:
    """A landscape that measures a subnet once, and counts."""

    landscape: MeasuredLandscape
    known: dict[Subnet, float] = field(default_factory=dict)
    cost: int = 0

    @property
    def samples(self) -> int:
        return self.landscape.samples

    def losses(self, subnets: Sequence[Subnet]) -> list[float]:
        new = [subnet for subnet in dict.fromkeys(subnets) if subnet not in self.known]
        if new:
            self.known |= zip(new, self.landscape.losses(new), strict=True)
            self.cost += len(new)
        return [self.known[subnet] for subnet in subnets]

    def slopes(self, subnet: Subnet, sample: int) -> Mapping[str, Mapping[Choice, float]]:
        self.cost += SLOPE
        return self.landscape.slopes(subnet, sample)

    def one(self, subnet: Subnet) -> float:
        return self.losses([subnet])[0]


class TPE(OptunaSearch):
    """Its first trials are the same, then a tree of Parzen estimators draws prices."""

    def sampler(self, seed: int) -> Any:
        import optuna

        return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=10)


def measuring(files: SupernetFiles, problem: Problem, meter: Meter, method: str, evaluations: int, seed: int) -> Subnet:
    if method == "steps":  # its clock counts evaluations
        starts = [candidate for _, candidate in propose(problem, files.spec, TRIALS, seed).finalists]
        search = MeasuredSearch(evaluations, meter, clock=lambda: float(meter.cost))
        return search.search(problem, starts).candidates[0].subnet
    first = evaluations * 2 // 3
    searches = {
        "nsga2": OptunaSearch(evaluations), "tpe": TPE(evaluations),
        "evolution": EvolutionSearch(samples=first, finalists=evaluations - first),
        "shrink": ShrinkSearch(first, evaluations - first),
    }  # fmt: skip
    return searches[method].search(replace(problem, objective=meter.one), seed=seed).candidates[0].subnet


def searched(files: SupernetFiles) -> SearchSpace:
    largest = {unit: choices[-1] for unit, choices in files.space}
    return files.space.restrict(lambda unit, choice: not files.spec.unit(unit).is_table or choice == largest[unit])


def time_limit(files: SupernetFiles, space: SearchSpace, device: str, share: float) -> Limit:
    """Time per token, so much of the way from the least to that of the widest uniform subnet: narrow ones may be slower
    where a runtime unpacks their codes by itself, but nothing is to be chosen where the widest fits."""
    profile, workload = names.device_named(device), Workload(CONTEXT)
    costs = Costs.of(RUNTIMES[RUNTIME](), files.spec, workload, profile, files.model_dir)
    (_, time) = costs.resources(space, Budget(sys.maxsize, tpot_ms=math.inf))
    assert time.name == TPOT
    least = time.least(space)
    most = time.amount(space.uniform(files.spec, max(space.bits(files.spec))))
    limit = least + share * (most - least)
    return Limit(f"{limit:.3g} ms a token", replace(time, limit=limit))


def problem_of(files: SupernetFiles, limit: Resource) -> Problem:
    """The supernet's sensitivities, and one limit."""
    spec, losses = files.spec, SensitivityTable.load(files.path / SENSITIVITY_FILE)
    space = searched(files)
    losses.check(space, files.fingerprint)
    depth = {u.name: 0 if u.layer is None else u.layer * DEPTHS // spec.num_layers for u in spec.units}
    groups = {u.name: f"{u.role} {depth[u.name]}" for u in spec.units}
    return Problem(space, losses.by_choice, (limit,), groups=groups)


# --- the verdict --------------------------------------------------------------------------------------------------


@dataclass
class Judge:
    """KL of a subnet on each stretch of the unseen texts."""

    landscape: MeasuredLandscape
    unseen: Sequence[Reference]
    known: dict[Subnet, tuple[float, ...]] = field(default_factory=dict)

    def __call__(self, subnet: Subnet) -> tuple[float, ...]:
        if subnet not in self.known:
            supernet = self.landscape.supernet
            dtype = compute_dtype(supernet.model.device)
            self.known[subnet] = tuple(evaluate(supernet, [subnet], part, dtype=dtype)[0].kl for part in self.unseen)
        return self.known[subnet]


def claims(rows: Sequence[Row]) -> Iterator[Claim]:
    of = {(row.limit.name, row.seed, row.method): row for row in rows}
    ours = [row for row in rows if row.method == "steps"]

    def ratios(rival: str, few: bool = False) -> list[float]:
        beside = ((row, of.get((row.limit.name, row.seed, rival))) for row in ours)
        return [
            row.mean / other.mean for row, other in beside
            if other is not None and not (few and (row.limit.bits is None or row.limit.bits >= FEW))
        ]  # fmt: skip

    if few := ratios("sum", few=True):
        yield Claim(f"KL of steps / of the sum's solution, mean below {FEW:g} bits", fmean(few), GAIN)
    if all_ := ratios("sum"):
        yield Claim("KL of steps / of the sum's solution, worst", max(all_), WORST)
    for rival in dict.fromkeys(row.method for row in rows if row.method not in ("steps", "sum")):
        if beside := ratios(rival):
            yield Claim(f"KL of steps / of {rival}, worst of {len(beside)}", max(beside), 1.0)


def print_rows(rows: Sequence[Row], on_line: float) -> None:
    base = next((row for row in rows if row.method == "sum"), rows[0])
    cells = [
        (
            row.method, row.evaluations or "-", "-" if row.seen is None else f"{row.seen:.4f}",
            f"{row.mean:.4f}", "-" if math.isnan(on_line) else f"{row.mean / on_line:.3f}", gap(row, base),
        )
        for row in rows
    ]  # fmt: skip
    limit = rows[0].limit.name if math.isnan(on_line) else f"{rows[0].limit.name}, line {on_line:.4f}"
    print(f"{limit}, seed {rows[0].seed}", flush=True)
    table(("", "EVALUATIONS", "KL SEEN", "KL UNSEEN", "OF THE LINE", f"LESS {base.method.upper()}, 95 %"), cells)


def gap(row: Row, base: Row) -> str:
    """On the same stretches, with the interval of Student's t."""
    apart = [one - other for one, other in zip(row.kl, base.kl, strict=True)]
    if len(apart) < 2:
        return f"{fmean(apart):+.4f}"
    return f"{fmean(apart):+.4f} ± {stdtrit(len(apart) - 1, 0.975) * stdev(apart) / math.sqrt(len(apart)):.4f}"


def record(row: Row, on_line: float) -> dict[str, Any]:
    of_the_line = None if row.limit.bits is None else row.mean / on_line
    kept = {"limit": row.limit.name, "method": row.method, "seed": row.seed, "evaluations": row.evaluations}
    return {**kept, "seen": row.seen, "kl": row.mean, "of_the_line": of_the_line, "stretches": row.kl}


if __name__ == "__main__":
    main()
