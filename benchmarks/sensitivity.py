"""How well the sensitivities of one pass rank what each unit's choice really costs.

    python benchmarks/sensitivity.py --supernet FOLDER      # a finished supernet; about ten minutes on 2 cores

Every unit is put to every bit-width below 8 by itself, all others at 8 bits, and measured: KL divergence per token from
the full model, in float32, on windows that were held out from training and from the pass of gradients. The claim is on
Spearman's rank correlation with `sensitivity.json` over all of them; it is also shown for each bit-width.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from claims import Claim, finish, table
from scipy.stats import spearmanr

from supernet.checkpoint import SupernetFiles, open_supernet
from supernet.evaluate import Reference, evaluate
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Choice

WIDEST, TARGET = 8, 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supernet", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=2, help="of the supernet's held-out windows")
    arguments = parser.parse_args()
    files = open_supernet(arguments.supernet)
    table_of = SensitivityTable.load(files.path / SENSITIVITY_FILE).by_choice
    units = [unit.name for unit in files.spec.units if not unit.is_table]
    pairs = [(unit, choice) for unit in units for choice in files.space.whole[unit] if choice.bits < WIDEST]
    started = time.perf_counter()
    measured = measure(files, pairs, arguments.windows)
    seconds = time.perf_counter() - started
    rows = []
    for bits in (*sorted({choice.bits for _, choice in pairs}), None):
        chosen = [pair for pair in pairs if bits in (pair[1].bits, None)]
        promised = [table_of[unit][choice] for unit, choice in chosen]
        rank = float(spearmanr(promised, [measured[pair] for pair in chosen]).statistic)
        rows.append({"bits": bits or "all", "choices": len(chosen), "spearman": rank})
    table(("bits", "choices", "Spearman"), [(r["bits"], r["choices"], f"{r['spearman']:.3f}") for r in rows])
    print(f"{len(pairs)} measurements took {seconds:.0f} s")
    lost = Claim("1 - rank correlation of sensitivities with measurements", 1 - rows[-1]["spearman"], 1 - TARGET)
    finish(__file__, [lost], rows=rows, seconds=seconds)


def measure(files: SupernetFiles, pairs: list[tuple[str, Choice]], windows: int) -> dict[tuple[str, Choice], float]:
    """What each unit's choice adds to the KL of the subnet whose units all have the widest choice."""
    supernet, whole = files.load(), files.reference()
    reference = Reference(whole.windows[:windows], whole.hidden[:windows], whole.head, whole.bias, whole.softcap)
    base = files.space.uniform(files.spec, WIDEST)
    subnets = [base, *(base.replace(unit, choice) for unit, choice in pairs)]
    least, *found = (quality.kl for quality in evaluate(supernet, subnets, reference))
    return {pair: kl - least for pair, kl in zip(pairs, found, strict=True)}


if __name__ == "__main__":
    main()
