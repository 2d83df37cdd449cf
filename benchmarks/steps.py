"""Minutes of measured search beside what planning finds without: KL on text that neither saw.

    python benchmarks/steps.py SUPERNET --text ../shared/text [--bits 2.25 2.5 2.75 3.25 3.5 3.75] [--minutes 3]

A budget is bytes of the linears' codes, given as average bits; embedding and head stay at their largest choice. `sum`
is the exact solution of the sensitivities, `planned` the best finalist of `bitfleet plan` by its own measurements,
`null` the exact solution of sensitivities that are permuted within each role, and `measured` what `--minutes` of steps
along the slope reach from the finalists, on windows of the text that trained. KL per token is from the full model on
the first windows of 512 tokens of eval.txt; `line` is the log-linear interpolation between the uniform subnets around.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from claims import Claim, finish, table
from search import problem_of

from planner.propose import TRIALS, propose
from planner.search.base import Problem
from planner.search.depth import around
from planner.search.exact import ExactSearch
from planner.search.measured import MeasuredSearch
from supernet.checkpoint import SupernetFiles, open_supernet
from supernet.evaluate import Reference, evaluate
from supernet.landscape import WINDOWS, MeasuredLandscape
from supernet.loading import load_model
from supernet.model import compute_dtype
from supernet.prepare import training_windows
from supernet.recipe import Recipe
from supernet.space import Subnet
from supernet.text import read_windows

BITS = (2.25, 2.5, 2.75, 3.25, 3.5, 3.75)
FEW = 3.0  # bits below which searching is to pay
GAIN, WORST = 0.9, 1.01  # KL of what was searched for / of the exact solution: on average below FEW, and anywhere


@dataclass(frozen=True)
class Row:
    """KL on the unseen text, by who proposed the subnet; `searched` is that of `measured` on the text it searched."""

    bits: float
    kl: dict[str, float]
    line: float
    searched: float
    trials: int
    slopes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("supernet", help="a folder that `bitfleet train` made")
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--bits", type=float, nargs="+", default=BITS)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    files = open_supernet(given.supernet)
    full = load_model(files.info["source"])
    windows = training_windows(full.tokenizer, Recipe.from_json(files.info["recipe"]), WINDOWS)
    seen = Reference.of(full.model, windows, first=files.reference().first)
    unseen = Reference.of(full.model, read_windows(str(given.text / "eval.txt"), full.tokenizer, given.windows, 512))
    del full
    landscape = MeasuredLandscape(files.load(), seen)
    uniform = {bits: files.space.uniform(files.spec, bits) for bits in files.space.bits(files.spec)}
    known = dict(zip(uniform, losses(landscape, list(uniform.values()), unseen), strict=True))
    rows = [row_of(files, landscape, unseen, known, bits, given.minutes, given.seed) for bits in given.bits]
    print_rows(rows)
    evidence = {"supernet": files.fingerprint, "minutes": given.minutes, "uniform": known}
    finish(__file__, list(claims(rows)), rows=[asdict(row) for row in rows], **evidence)


def row_of(
    files: SupernetFiles, landscape: MeasuredLandscape, unseen: Reference, uniform: dict[int, float], bits: float,
    minutes: float, seed: int,
) -> Row:  # fmt: skip
    problem = problem_of(files, bits)
    proposed = propose(problem, files.spec, TRIALS, seed)
    starts = [candidate for _, candidate in proposed.finalists]
    judged = dict(zip(proposed.subnets, landscape.losses(proposed.subnets), strict=True))
    found = MeasuredSearch(60 * minutes, landscape).search(problem, starts)
    subnets = {
        "sum": ExactSearch().search(problem).candidates[0].subnet,
        "null": ExactSearch().search(permuted(problem, files, seed)).candidates[0].subnet,
        "planned": min(judged, key=judged.__getitem__),
        "measured": found.candidates[0].subnet,
    }
    kl = dict(zip(subnets, losses(landscape, list(subnets.values()), unseen), strict=True))
    row = Row(bits, kl, line(uniform, bits), found.candidates[0].loss, found.trace["trials"], found.trace["slopes"])
    print(row, flush=True)
    return row


def losses(landscape: MeasuredLandscape, subnets: Sequence[Subnet], text: Reference) -> list[float]:
    dtype = compute_dtype(landscape.supernet.model.device)
    return [quality.kl for quality in evaluate(landscape.supernet, subnets, text, dtype=dtype)]


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


def line(uniform: dict[int, float], bits: float) -> float:
    near = around(uniform, bits)
    if near is None or near[0] == near[1]:
        return uniform.get(int(bits), math.nan)
    share = (bits - near[0]) / (near[1] - near[0])
    return math.exp((1 - share) * math.log(uniform[near[0]]) + share * math.log(uniform[near[1]]))


def claims(rows: Sequence[Row]) -> Iterator[Claim]:
    gains = {row.bits: row.kl["measured"] / row.kl["sum"] for row in rows}
    few = [gain for bits, gain in gains.items() if bits < FEW]
    if few:
        yield Claim(f"KL of the measured search / of the sum's solution, mean below {FEW:g} bits", fmean(few), GAIN)
    yield Claim("KL of the measured search / of the sum's solution, worst", max(gains.values()), WORST)
    yield Claim(
        "KL of the measured search / of permuted sensitivities, worst",
        max(row.kl["measured"] / row.kl["null"] for row in rows), 1.0,
    )  # fmt: skip


def print_rows(rows: Sequence[Row]) -> None:
    names = ("null", "sum", "planned", "measured")
    cells = [
        (f"{r.bits:g}", f"{r.line:.4f}", *(f"{r.kl[n]:.4f}" for n in names), f"{r.searched:.4f}", r.trials, r.slopes)
        for r in rows
    ]  # fmt: skip
    table(("BITS", "LINE", *map(str.upper, names), "ON ITS TEXT", "TRIALS", "SLOPES"), cells)


if __name__ == "__main__":
    main()
