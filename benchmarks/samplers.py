"""What samplers win for mixtures: several trainings of one set of codes, each of the same cost.

    python benchmarks/quality.py --text ../shared/text --full --keep FOLDER
    python benchmarks/samplers.py --text ../shared/text --supernet FOLDER [--samplers slimmable planned] [--bits 2,3]

Every row starts from the codes that the supernet's training started from (quality.py keeps them beside FOLDER) and
takes as many passes as that training did, on the same windows of train.txt, with adapters at `--bits`. Then
sensitivities are measured, subnets are proposed for every average as by `benchmarks/frontier.py`, and the best of each
on held-out windows is the row's. KL divergence per token from the full model on windows of 512 tokens of eval.txt; of a
mixture beside the log-linear line between the uniform subnets around it, of the same training and of the first one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from claims import Claim, finish, table
from mixtures import best, line, proposals
from separate import Setting
from training import train

from supernet.evaluate import evaluate
from supernet.samplers import SAMPLERS
from supernet.sensitivity import measure_sensitivities
from supernet.stages.amounts import SENSITIVITY
from supernet.train import TrainOptions, passes, trained_space

AVERAGES = (2.25, 2.5, 2.75, 3.25, 3.5, 3.75)
LINE, UNIFORM = 0.95, 1.02  # KL of mixtures / of the line, and of uniform subnets / of the first sampler's


class Start(Setting):
    """What every training starts from."""

    def affordable(self) -> int:
        """Steps are counted by their passes, here; nothing needs to be timed."""
        return int(self.files.info["steps"])


@dataclass(frozen=True)
class Row:
    """KL on eval.txt of uniform subnets by bits and of the best mixture by average; `seconds` of the steps."""

    sampler: str
    steps: int
    seconds: float
    uniform: dict[int, float]
    mixed: dict[float, float]

    def shares(self, of: Row) -> dict[float, float]:
        """KL of each mixture as a share of the line between the uniform subnets `of` a row."""
        return {average: kl / line(of.uniform, average) for average, kl in self.mixed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--supernet", type=Path, required=True, help="a finished one, trained on the text")
    parser.add_argument("--samplers", nargs="+", default=["slimmable", "planned", "neighbours"], choices=SAMPLERS)
    parser.add_argument("--bits", help="that have adapters; by default those of the supernet's training")
    parser.add_argument("--averages", type=float, nargs="+", default=AVERAGES)
    parser.add_argument("--share", type=float, default=1.0, help="of the passes of that training")
    parser.add_argument("--windows", type=int, default=16)
    arguments = parser.parse_args()
    setting = Start(arguments.text, arguments.supernet, arguments.windows)
    widths = tuple(map(int, arguments.bits.split(","))) if arguments.bits else setting.recipe.adapted_bits
    rows = [trained(setting, name, widths, arguments) for name in arguments.samplers]
    print_rows(rows)
    finish(__file__, list(claims(rows)), rows=[asdict(row) for row in rows], supernet=setting.files.fingerprint)


def trained(setting: Setting, name: str, widths: tuple[int, ...], arguments: argparse.Namespace) -> Row:
    recipe, spec, supernet = setting.recipe, setting.files.spec, setting.untrained(widths)
    cost = setting.steps * passes(len(recipe.adapted_bits) if recipe.sampler == "slimmable" else 1)
    space = trained_space(supernet)
    subnets = max(len(SAMPLERS[name]().sample(space, step, 20, recipe.seed, ())) for step in range(20))
    steps = max(1, round(arguments.share * cost / passes(subnets)))
    options = TrainOptions(steps, recipe.rate, recipe.batch, recipe.seed, save_every=steps)
    started = time.perf_counter()
    train(setting.teacher, supernet, setting.windows, options, name)
    seconds = time.perf_counter() - started
    held_out, windows = setting.files.reference(), setting.windows[:SENSITIVITY]
    losses, _ = measure_sensitivities(setting.model, supernet, windows, held_out, recipe.seed)
    tables = {unit.name for unit in spec.units if unit.is_table}
    space = setting.files.space.whole.restrict(lambda unit, choice: unit not in tables or choice.bits == 8)
    offered = {average: proposals(spec, space, losses, average) for average in arguments.averages}
    chosen = best(supernet, offered, held_out)
    uniform = {bits: space.uniform(spec, bits) for bits in space.bits(spec)}
    found = evaluate(supernet, [*uniform.values(), *chosen.values()], setting.reference)
    kls = [quality.kl for quality in found]
    of_uniform = dict(zip(uniform, kls, strict=False))
    row = Row(name, steps, seconds, of_uniform, dict(zip(chosen, kls[len(uniform) :], strict=True)))
    print(row, flush=True)
    return row


def claims(rows: Sequence[Row]) -> Iterator[Claim]:
    first = rows[0]
    for row in rows[1:]:
        yield Claim(f"{row.sampler}: KL of mixtures / of its line, worst", max(row.shares(row).values()), LINE)
        gain = fmean(row.mixed[average] / first.mixed[average] for average in row.mixed)
        yield Claim(f"{row.sampler}: KL of mixtures / of {first.sampler}'s, mean", gain, 1.0)
        worst = max(kl / first.uniform[bits] for bits, kl in row.uniform.items())
        yield Claim(f"{row.sampler}: KL of uniform subnets / of {first.sampler}'s, worst", worst, UNIFORM)


def print_rows(rows: Sequence[Row]) -> None:
    averages, widths = list(rows[0].mixed), list(rows[0].uniform)
    cells = []
    for row in rows:
        shares = row.shares(row)
        mixed = (f"{row.mixed[average]:.4f} ({shares[average]:.2f})" for average in averages)
        uniform = (f"{row.uniform[bits]:.4f}" for bits in widths)
        cells.append((row.sampler, row.steps, f"{row.seconds:.0f}", *uniform, *mixed))
    header = (*(f"{bits}" for bits in widths), *(f"{average:g} (of its line)" for average in averages))
    table(("sampler", "steps", "seconds", *header), cells)


if __name__ == "__main__":
    main()
