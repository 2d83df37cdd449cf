"""Searches beside each other at equal bytes and equal evaluations: KL on two kinds of text that none of them saw.

    python benchmarks/search.py SUPERNET --text ../shared/text [--bits 2.5 3.5] [--evaluations 60] [--seeds 0 1 2]

A budget is bytes of the linears' codes, given as average bits; embedding and head stay at their largest choice. Rules
and sums measure nothing:

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
the same ones; `line` is the log-linear interpolation between the uniform subnets around.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from claims import Claim, finish, table
from mixtures import code_bits, line
from scipy.special import stdtrit

from planner.frame import DEPTHS
from planner.propose import TRIALS, propose
from planner.search import EvolutionSearch, ExactSearch, OptunaSearch, ShrinkSearch
from planner.search.base import Problem
from planner.search.measured import MeasuredSearch
from supernet.checkpoint import SupernetFiles, open_supernet
from supernet.evaluate import Reference, evaluate
from supernet.landscape import WINDOWS, MeasuredLandscape
from supernet.loading import load_model
from supernet.model import compute_dtype
from supernet.prepare import searching_windows
from supernet.recipe import Recipe
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Choice, Subnet
from supernet.spec import UnitSpec
from supernet.text import manual_windows, read_windows

BITS = (2.25, 2.5, 2.75, 3.25, 3.5, 3.75)
SLOPE = 3  # evaluations that a slope costs: a pass forward and one backward
TOKENS, STRETCH = 512, 4  # of an unseen window, and windows that are read together
FEW = 3.0  # bits below which searching is to pay
GAIN, WORST = 0.9, 1.01  # KL of `steps` / of `sum`: on average below FEW, and anywhere
RULES = ("uniform", "ends", "roles", "greedy", "sum", "null", "planned")
MEASURING = ("steps", "nsga2", "tpe", "evolution", "shrink")
WIDER_ROLES = ("v", "down", "o")  # the first part of a role's name, the most sensitive first


@dataclass(frozen=True)
class Row:
    """`kl` of each stretch of the unseen texts, one text after the other; `seen` on the windows that were searched."""

    bits: float
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
    parser.add_argument("--bits", type=float, nargs="+", default=BITS)
    parser.add_argument("--methods", nargs="+", choices=(*RULES, *MEASURING), default=(*RULES, *MEASURING))
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--windows", type=int, default=16, help="of each kind of unseen text")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    files = open_supernet(given.supernet)
    full = load_model(files.info["source"])
    windows = searching_windows(full.tokenizer, Recipe.from_json(files.info["recipe"]), WINDOWS)
    seen = Reference.of(full.model, windows, first=files.reference().first)
    unseen = [
        Reference.of(full.model, text[start : start + STRETCH])
        for text in (
            read_windows(str(given.text / "eval.txt"), full.tokenizer, given.windows, TOKENS),
            manual_windows(full.tokenizer, given.windows, TOKENS, "measure"),
        )
        for start in range(0, len(text), STRETCH)
    ]
    del full
    landscape = MeasuredLandscape(files.load(), seen)
    uniform = {bits: files.space.uniform(files.spec, bits) for bits in files.space.bits(files.spec)}
    judge = Judge(landscape, unseen)
    known = {bits: fmean(judge(subnet)) for bits, subnet in uniform.items()}
    rows = []
    for bits in given.bits:
        for seed in given.seeds:
            rows += rows_of(files, landscape, judge, bits, given.methods, given.evaluations, seed)
            print_rows([row for row in rows if (row.bits, row.seed) == (bits, seed)], line(known, bits))
    evidence = {"supernet": files.fingerprint, "evaluations": given.evaluations, "uniform": known}
    finish(__file__, list(claims(rows)), rows=[record(row, line(known, row.bits)) for row in rows], **evidence)


def rows_of(
    files: SupernetFiles, landscape: MeasuredLandscape, judge: Judge, bits: float, methods: Sequence[str],
    evaluations: int, seed: int,
) -> list[Row]:  # fmt: skip
    problem = problem_of(files, bits)
    rows = []
    for method in methods:
        meter = Meter(landscape)
        if method in MEASURING:
            subnet = measuring(files, problem, meter, method, evaluations, seed)
        else:
            subnet = ruled(files, problem, meter, method, seed)
        loss = min(meter.known.values()) if meter.known else None
        rows.append(Row(bits, method, seed, subnet, meter.cost, loss, judge(subnet)))
    return rows


# --- what measures nothing ----------------------------------------------------------------------------------------


def ruled(files: SupernetFiles, problem: Problem, meter: Meter, method: str, seed: int) -> Subnet:
    spec = files.spec
    if method == "planned":
        subnets = propose(problem, spec, TRIALS, seed).subnets
        return min(zip(meter.losses(subnets), subnets, strict=True), key=lambda pair: pair[0])[1]
    if method in ("sum", "null"):
        asked = problem if method == "sum" else permuted(problem, files, seed)
        found = ExactSearch().search(asked).candidates[0].subnet
        assert method == "sum" or found != ExactSearch().search(problem).candidates[0].subnet
        return found
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
    """Sensitivity that goes for each byte that comes."""
    (memory,) = problem.resources

    def of(unit: str, now: Choice, then: Choice) -> float:
        more = memory.table[unit][then] - memory.table[unit][now]
        return (problem.loss[unit][now] - problem.loss[unit][then]) / more

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


def permuted(problem: Problem, files: SupernetFiles, seed: int) -> Problem:
    """The same problem with each unit's losses those of another unit of its role."""
    random, by_role = np.random.default_rng(seed), {}
    for unit in files.spec.units:
        by_role.setdefault(unit.role, []).append(unit.name)
    loss = {}
    for names in by_role.values():
        loss |= {
            name: problem.loss[names[other]] for name, other in zip(names, random.permutation(len(names)), strict=True)
        }
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


def problem_of(files: SupernetFiles, bits: float) -> Problem:
    """The supernet's sensitivities, and the bytes of codes of so many bits a weight as the only limit."""
    spec, losses = files.spec, SensitivityTable.load(files.path / SENSITIVITY_FILE)
    largest = {unit: choices[-1] for unit, choices in files.space}
    space = files.space.restrict(lambda unit, choice: not spec.unit(unit).is_table or choice == largest[unit])
    losses.check(space, files.fingerprint)
    depth = {u.name: 0 if u.layer is None else u.layer * DEPTHS // spec.num_layers for u in spec.units}
    groups = {u.name: f"{u.role} {depth[u.name]}" for u in spec.units}
    return Problem(space, losses.by_choice, (code_bits(spec, space, bits),), groups=groups)


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
    of = {(row.bits, row.seed, row.method): row for row in rows}
    ours = [row for row in rows if row.method == "steps"]
    pairs = [(row, of[row.bits, row.seed, "sum"]) for row in ours if (row.bits, row.seed, "sum") in of]
    few = [one.mean / other.mean for one, other in pairs if one.bits < FEW]
    if few:
        yield Claim(f"KL of steps / of the sum's solution, mean below {FEW:g} bits", fmean(few), GAIN)
    if pairs:
        yield Claim("KL of steps / of the sum's solution, worst", max(a.mean / b.mean for a, b in pairs), WORST)
    for rival in dict.fromkeys(row.method for row in rows if row.method not in ("steps", "sum")):
        ratios = [row.mean / of[row.bits, row.seed, rival].mean for row in ours]
        if ratios:
            yield Claim(f"KL of steps / of {rival}, mean of {len(ratios)}", fmean(ratios), 1.0)


def print_rows(rows: Sequence[Row], between: float) -> None:
    base = next((row for row in rows if row.method == "sum"), rows[0])
    cells = [
        (
            row.method, row.evaluations or "-", "-" if row.seen is None else f"{row.seen:.4f}",
            f"{row.mean:.4f}", f"{row.mean / between:.3f}", gap(row, base),
        )
        for row in rows
    ]  # fmt: skip
    print(f"{rows[0].bits:g} bits, seed {rows[0].seed}, line {between:.4f}")
    table(("", "EVALUATIONS", "KL SEEN", "KL UNSEEN", "OF THE LINE", f"LESS {base.method.upper()}, 95 %"), cells)


def gap(row: Row, base: Row) -> str:
    """On the same stretches, with the interval of Student's t."""
    apart = [one - other for one, other in zip(row.kl, base.kl, strict=True)]
    if len(apart) < 2:
        return f"{fmean(apart):+.4f}"
    return f"{fmean(apart):+.4f} ± {stdtrit(len(apart) - 1, 0.975) * stdev(apart) / math.sqrt(len(apart)):.4f}"


def record(row: Row, between: float) -> dict[str, Any]:
    kept = {"bits": row.bits, "method": row.method, "seed": row.seed, "evaluations": row.evaluations, "seen": row.seen}
    return {**kept, "kl": row.mean, "of_the_line": row.mean / between, "stretches": row.kl}


if __name__ == "__main__":
    main()
