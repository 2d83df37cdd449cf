"""Fronts beside each other at equal evaluations: KL on two kinds of text that none of them saw, within the same limits.

    python benchmarks/front.py SUPERNET --text FOLDER --device DEVICE [--runtime onnxruntime] [--aims memory tpot]
        [--evaluations 40] [--windows 16] [--seeds 0 1 2]

Each method measures subnets as often as --evaluations says, on the same windows (the last ones of the text that
trained, and of the manual's part for adapters), and may choose among all of them:

sums       uniform subnets, and the exact solutions of the sensitivities within limits that are spread evenly, in finer
           lattices until all evaluations are used
nsga2      Optuna's NSGA-II of as many objectives, over prices of groups of units and limits of each aim; each trial is
           the exact solution for its prices within its limits, and the first ones have all prices 1
front      what `bitfleet plan --front` does

A lattice of limits asks each for what it measured best within them. KL there, on the unseen texts, is compared in the
geometric mean over all limits at which every method has a subnet; how many have one is said.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from claims import Claim, finish, table
from search import Meter, measured_on

from commands import names
from planner.frame import frame
from planner.front import with_aims
from planner.landscape import TiedLandscape
from planner.propose import all_uniforms
from planner.request import Budget, Workload
from planner.runtimes import RUNTIMES
from planner.scenario import Scenario
from planner.search.base import Problem, Resource
from planner.search.exact import ExactSearch
from planner.search.front import FrontSearch
from planner.search.lattice import Lattice
from planner.search.program import solve
from supernet.checkpoint import open_supernet
from supernet.landscape import JUDGES
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Subnet

ASKED = 33  # limits of each aim that a front is asked for, of one aim; of two a square of
ASKED_OF_TWO = 17
CONTEXT = 512
LOG2_PRICE, POPULATION = 2.0, 16
BETTER, NO_WORSE = 0.9, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("supernet", help="a folder that `bitfleet train` made")
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--device", required=True, help="as of `bitfleet plan`")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--aims", nargs="+", choices=("memory", "tpot"), default=["memory", "tpot"])
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--windows", type=int, default=JUDGES, help="to search on, and of each kind of unseen text")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of nsga2; the others draw nothing")
    given = parser.parse_args()
    files = open_supernet(given.supernet)
    device, runtime = names.device_named(given.device), RUNTIMES[given.runtime]()
    losses = SensitivityTable.load(files.path / SENSITIVITY_FILE)
    framed = frame(Scenario(files, losses, runtime, device, Workload(CONTEXT), Budget(sys.maxsize)))
    problem = with_aims(framed)
    problem = replace(problem, resources=tuple(one for one in problem.resources if one.name in given.aims))
    landscape, judge = measured_on(files, given.text, given.windows, given.windows)
    shared = Meter(landscape)  # what one method measured, another need not
    lattice = Lattice.of(problem, problem.resources, ASKED if len(problem.resources) == 1 else ASKED_OF_TWO)
    assert lattice is not None
    limits = list(itertools.product(*(levels.tolist() for levels in lattice.levels)))
    first = uniforms(problem, framed.costs.spec)

    def found(method: Callable[[Problem, Counted], None]) -> list[float | None]:
        counted = Counted(TiedLandscape(shared, framed), given.evaluations)
        method(problem, counted)
        return [asked(problem, counted, at, lambda subnet: fmean(judge(framed.apart(subnet)))) for at in limits]

    losses_at = {"sums": found(lambda p, c: sums(p, c, first)), "front": found(lambda p, c: front(p, c, first))}
    losses_at |= {f"nsga2, seed {seed}": found(lambda p, c, seed=seed: nsga2(p, c, seed)) for seed in given.seeds}
    rows = list(compared(losses_at))
    table(("", "LIMITS KEPT", "KL / THAT OF SUMS", "AT FEW, MIDDLE, MANY"), [row[:4] for row in rows])
    evidence = {
        "supernet": files.fingerprint, "aims": given.aims, "evaluations": given.evaluations, "limits": len(limits),
    }  # fmt: skip
    finish(__file__, list(claims(rows)), rows=[row[4] for row in rows], **evidence)


class Counted:
    """What one method may measure: so many subnets; `known` are their losses."""

    samples = 1

    def __init__(self, landscape: TiedLandscape, most: int) -> None:
        self.landscape, self.most = landscape, most
        self.known: dict[Subnet, float] = {}

    @property
    def left(self) -> int:
        return self.most - len(self.known)

    def losses(self, subnets: Sequence[Subnet]) -> list[float]:
        new = [subnet for subnet in dict.fromkeys(subnets) if subnet not in self.known]
        if len(new) > self.left:
            raise ValueError(f"{self.most} evaluations may be used")
        self.known |= zip(new, self.landscape.losses(new), strict=True)
        return [self.known[subnet] for subnet in subnets]

    def slopes(self, subnet: Subnet, sample: int) -> Any:
        return self.landscape.slopes(subnet, sample)


def uniforms(problem: Problem, spec: Any) -> tuple[Subnet, ...]:
    """Of each bit-width the one that is expected to lose least."""
    best: dict[str, Subnet] = {}
    for subnet, name in all_uniforms(problem, spec):
        if name not in best or problem.value(subnet) < problem.value(best[name]):
            best[name] = subnet
    return tuple(best.values())


# --- the methods --------------------------------------------------------------------------------------------------


def sums(problem: Problem, counted: Counted, first: tuple[Subnet, ...]) -> None:
    """Lattices of 2, 3, 4 ... limits of each aim, each from one end to the other."""
    counted.losses([subnet for subnet in first if problem.feasible(subnet)])
    for side in range(2, 10 * counted.most):
        lattice = Lattice.of(problem, problem.resources, side)
        assert lattice is not None
        for limits in itertools.product(*(levels.tolist() for levels in lattice.levels)):
            if not counted.left:
                return
            within = [replace(one, limit=limit) for one, limit in zip(problem.resources, limits, strict=True)]
            solved = solve(problem.space, problem.loss, within)
            if solved is not None:
                counted.losses([solved.subnet])


def front(problem: Problem, counted: Counted, first: tuple[Subnet, ...]) -> None:
    """Its clock counts evaluations; up to three are measured at once, so that it ends two before the last."""
    search = FrontSearch(counted.most - 2, counted, first=first, clock=lambda: float(len(counted.known)))
    search.search(problem, ExactSearch().search(problem).candidates[:1])


def nsga2(problem: Problem, counted: Counted, seed: int) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    lattice = Lattice.of(problem, problem.resources, 2)
    assert lattice is not None
    groups, aims = sorted(set(problem.groups.values())), problem.resources
    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    study = optuna.create_study(directions=["minimize"] * (1 + len(aims)), sampler=sampler)
    side = round(POPULATION ** (1 / len(aims)))
    for shares in itertools.product(np.linspace(0, 1, side), repeat=len(aims)):
        names_of = (f"share of {aim.name}" for aim in aims)
        study.enqueue_trial(dict.fromkeys(groups, 0.0) | dict(zip(names_of, map(float, shares), strict=True)))

    def objective(trial: optuna.Trial) -> list[float]:
        prices = {group: 2 ** trial.suggest_float(group, -LOG2_PRICE, LOG2_PRICE) for group in groups}
        limits = []
        for aim, levels in zip(aims, lattice.levels, strict=True):
            share = trial.suggest_float(f"share of {aim.name}", 0, 1)
            limits.append(replace(aim, limit=levels[0] + share * (levels[-1] - levels[0])))
        priced = {
            unit: {c: prices[problem.groups[unit]] * problem.loss[unit][c] for c in choices}
            for unit, choices in problem.space
        }
        solved = solve(problem.space, priced, limits)
        if solved is None:
            raise optuna.TrialPruned
        return [counted.losses([solved.subnet])[0], *(aim.amount(solved.subnet) for aim in aims)]

    for _ in range(20 * counted.most):
        if not counted.left:
            return
        study.optimize(objective, n_trials=1)


# --- the verdict --------------------------------------------------------------------------------------------------


def asked(problem: Problem, counted: Counted, limits: Sequence[float], loss: Callable[[Subnet], float]) -> float | None:
    """Unseen KL of what was measured best within limits."""

    def keeps(aim: Resource, limit: float, subnet: Subnet) -> bool:
        return aim.amount(subnet) <= limit

    within = [
        one for one in counted.known
        if all(keeps(aim, limit, one) for aim, limit in zip(problem.resources, limits, strict=True))
    ]  # fmt: skip
    return loss(min(within, key=counted.known.__getitem__)) if within else None


def compared(losses_at: dict[str, list[float | None]]) -> Iterator[tuple[str, str, str, str, dict[str, Any]]]:
    kept = [at for at, row in enumerate(zip(*losses_at.values(), strict=True)) if None not in row]
    kept.sort(key=lambda at: -(losses_at["sums"][at] or 0))
    for method, losses in losses_at.items():
        ratios = [math.log((losses[at] or 0) / (losses_at["sums"][at] or 1)) for at in kept]
        thirds = [math.exp(fmean(part.tolist())) for part in np.array_split(np.array(ratios), 3)]
        ratio, count = math.exp(fmean(ratios)), sum(loss is not None for loss in losses)
        record = {"method": method, "kept": count, "ratio": ratio, "thirds": thirds}
        yield method, f"{count}", f"{ratio:.3f}", " ".join(f"{third:.3f}" for third in thirds), record


def claims(rows: Sequence[tuple[str, str, str, str, dict[str, Any]]]) -> Iterator[Claim]:
    ratios = {row[0]: row[4]["ratio"] for row in rows}
    yield Claim("KL of the front / of the sums within the same limits", ratios["front"], NO_WORSE)
    rivals = [ratio for method, ratio in ratios.items() if method.startswith("nsga2")]
    if rivals:
        yield Claim("KL of the front / of NSGA-II, at its best seed", ratios["front"] / min(rivals), BETTER)


if __name__ == "__main__":
    main()
