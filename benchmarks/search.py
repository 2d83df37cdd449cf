"""The planner's searches beside the ones they are judged against, on one trained supernet.

    python benchmarks/search.py SUPERNET [--bits 2.5 3 3.5] [--evaluations 100 50] [--measure 2]

A budget is bytes of the linears' codes, given as average bits; embedding and head stay at their largest choice. The
predicted loss is the sum of the supernet's sensitivities. Without --measure every method searches on that sum.

With --measure N the best subnet of each method is measured on the last N of the supernet's held-out windows. Shrink,
evolution and random then search as their papers do, by measuring every subnet that they evaluate on the other windows:
a second each on two cores for SmolLM2 in bfloat16, so --evaluations says how many (first and then; random takes the
sum). They begin with the same random subnets; these are measured once, and the seconds of a method count what it would
have waited for. Exact and Optuna know the sensitivities and nothing else. Training scaled these, by one number for each
bit-width, so that they add up to what uniform subnets lose on all of the windows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np
from claims import Claim, finish, table

from planner.frame import DEPTHS
from planner.propose import TRIALS
from planner.search import EvolutionSearch, ExactSearch, OptunaSearch, ShrinkSearch
from planner.search.base import Candidate, Found, Problem, Resource, Search, ranked
from planner.search.feasible import Feasible
from supernet.checkpoint import SupernetFiles, open_supernet
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Subnet

PLANNED, BASELINES = ("exact", "optuna"), ("shrink", "evolution", "random")
SOLVERS = ("optuna", "scipy.optimize", "scipy.stats")


@dataclass(frozen=True)
class RandomSearch(Search):
    """The best of `evaluations` subnets drawn evenly from those within the limits."""

    name = "random"
    evaluations: int

    def search(self, problem: Problem, starts: Sequence[Candidate] = (), seed: int = 0) -> Found:
        drawn = Feasible.of(problem).sample(self.evaluations, np.random.default_rng(seed))
        return Found(ranked(problem, [(subnet, self.name) for subnet in drawn]), {})


@dataclass(frozen=True)
class Row:
    """The best that a method found. `seconds` are those of all its evaluations too, as if it had been alone."""

    bits: float
    method: str
    subnet: Subnet
    mean_bits: float
    predicted: float
    evaluations: int
    seconds: float
    kl: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("supernet", help="a folder that `bitfleet train` made")
    parser.add_argument("--bits", type=float, nargs="+", default=[2.5, 3.0, 3.5])
    parser.add_argument("--evaluations", type=int, nargs=2, default=[100, 50], metavar=("FIRST", "THEN"))
    parser.add_argument("--measure", type=int, default=0, metavar="N", help="measure on the last N held-out windows")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    files = open_supernet(arguments.supernet)
    searches = methods(*arguments.evaluations)
    problems = {bits: problem_of(files, bits) for bits in arguments.bits}
    seen, unseen = measures(files, arguments.measure) if arguments.measure else (None, None)
    for name in SOLVERS:
        import_module(name)  # or the first search that needs it would be timed with it
    rows = []
    for bits, problem in problems.items():
        meter = Meter(seen or problem.additive)
        for name, search in searches.items():
            judged = replace(problem, objective=None if seen and name in PLANNED else meter)
            rows.append(searched(files, bits, search, judged, meter, arguments.seed))
    if unseen:
        rows = [replace(row, kl=unseen(row.subnet)) for row in rows]
    print_rows(rows)
    evidence = {"supernet": files.fingerprint, "evaluations": arguments.evaluations, "windows": arguments.measure}
    finish(__file__, list(claims(rows)), rows=[record(row) for row in rows], **evidence)


def methods(first: int, then: int) -> dict[str, Search]:
    searches = (
        ExactSearch(), OptunaSearch(trials=TRIALS), ShrinkSearch(first, then),
        EvolutionSearch(samples=first, finalists=then), RandomSearch(first + then),
    )  # fmt: skip
    return {search.name: search for search in searches}


def problem_of(files: SupernetFiles, bits: float) -> Problem:
    """The supernet's sensitivities, and the bytes of codes of so many bits a weight as the only limit."""
    spec, losses = files.spec, SensitivityTable.load(files.path / SENSITIVITY_FILE)
    largest = {unit: choices[-1] for unit, choices in files.space}
    space = files.space.restrict(lambda unit, choice: not spec.unit(unit).is_table or choice == largest[unit])
    losses.check(space, files.fingerprint)
    codes = {
        unit: {c: 0 if spec.unit(unit).is_table else spec.unit(unit).weights * c.bits // 8 for c in choices}
        for unit, choices in space
    }
    memory = Resource("memory", "bytes", int(spec.linear_weights * bits / 8), 0, codes)
    depth = {u.name: 0 if u.layer is None else u.layer * DEPTHS // spec.num_layers for u in spec.units}
    return Problem(space, losses.by_choice, (memory,), groups={u.name: f"{u.role} {depth[u.name]}" for u in spec.units})


Loss = Callable[[Subnet], float]


@dataclass
class Meter:
    """Evaluates every subnet once for all methods, and knows how long each took and which one method asked for."""

    loss: Loss
    known: dict[Subnet, tuple[float, float]] = field(default_factory=dict)
    asked: set[Subnet] = field(default_factory=set)
    waited: float = 0.0

    def __call__(self, subnet: Subnet) -> float:
        if subnet not in self.known:
            started = time.perf_counter()
            loss = self.loss(subnet)
            self.known[subnet] = loss, time.perf_counter() - started
            self.waited += self.known[subnet][1]
        self.asked.add(subnet)
        return self.known[subnet][0]

    def restart(self) -> None:
        self.asked, self.waited = set(), 0.0

    @property
    def seconds(self) -> float:
        """What those asked for took, whoever waited for it."""
        return sum(self.known[subnet][1] for subnet in self.asked)


def searched(files: SupernetFiles, bits: float, search: Search, problem: Problem, meter: Meter, seed: int) -> Row:
    meter.restart()
    started = time.perf_counter()
    found = search.search(problem, seed=seed)
    seconds = time.perf_counter() - started - meter.waited + meter.seconds
    if not found.candidates:
        raise SystemExit(f"{search.name} found nothing within {bits:g} bits; ask for more with --bits")
    best = found.candidates[0].subnet
    predicted = problem.additive(best)
    return Row(bits, search.name, best, best.mean_bits(files.spec), predicted, len(meter.asked), seconds)


def measures(files: SupernetFiles, last: int) -> tuple[Loss, Loss]:
    """A subnet's KL on the held-out windows but the last ones, and on the last ones."""
    from supernet.evaluate import Reference, evaluate
    from supernet.model import compute_dtype

    whole = files.reference()
    have = len(whole.windows)
    if not 0 < last < have:
        raise SystemExit(f"--measure leaves windows to search on, so 1 to {have - 1} of {have}, got {last}")
    supernet = files.load()
    dtype = compute_dtype(whole.head.device)

    def measure(reference: Reference) -> Loss:
        return lambda subnet: evaluate(supernet, [subnet], reference, dtype=dtype)[0].kl

    parts = (slice(0, have - last), slice(have - last, have))
    seen, unseen = (replace(whole, windows=whole.windows[part], hidden=whole.hidden[part]) for part in parts)
    return measure(seen), measure(unseen)


def print_rows(rows: Sequence[Row]) -> None:
    cells = [
        (
            f"{row.bits:g} bits, {row.method}", f"{row.mean_bits:.3f}", f"{row.predicted:.4f}", row.evaluations,
            f"{row.seconds:.2f}", "-" if row.kl is None else f"{row.kl:.4f}",
        )
        for row in rows
    ]  # fmt: skip
    table(("", "bits", "predicted loss", "evaluations", "seconds", "KL, unseen windows"), cells)


def claims(rows: Sequence[Row]) -> Iterator[Claim]:
    of = {method: [row for row in rows if row.method == method] for method in ("exact", *BASELINES)}
    over = f"worst of {len(of['exact'])} budgets"
    for name in BASELINES:
        pairs = list(zip(of["exact"], of[name], strict=True))
        worst = max(ours.predicted / theirs.predicted for ours, theirs in pairs)
        yield Claim(f"predicted loss of the exact solution / of {name}, {over}", worst, 1.0)
        measured = [ours.kl / theirs.kl for ours, theirs in pairs if ours.kl is not None and theirs.kl is not None]
        if measured:
            yield Claim(f"measured KL of the exact solution / of {name}, {over}", max(measured), 1.0)


def record(row: Row) -> dict[str, Any]:
    fields = ("bits", "method", "mean_bits", "predicted", "evaluations", "seconds", "kl")
    return {name: getattr(row, name) for name in fields} | {"subnet": row.subnet.digest}


if __name__ == "__main__":
    main()
