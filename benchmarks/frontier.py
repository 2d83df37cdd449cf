"""The best planned subnet at every average, beside what people use today, at the same bytes.

    python benchmarks/rivals.py --text ../shared/text                             # first: what the others reach
    python benchmarks/frontier.py --text ../shared/text --supernet FOLDER         # a supernet of the same model
    python benchmarks/frontier.py --rows benchmarks/results/frontier.json         # as measured, beside new rivals

A subnet has at most as many code bits a weight as the average says, and so at most the bytes of the rivals' rows:
groups of 64, integer zeros, the embedding at 8 bits, scales, zeros and codes counted. Candidates are what the exact
search finds on the supernet's sensitivities, among all bit-widths and among the two around the average, those two split
at a depth, and the uniform subnet below; the best of them on the supernet's own held-out windows is the row. Quality is
KL divergence per token from the full model on the first 16 windows of 512 tokens of eval.txt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from claims import Claim, finish, table
from mixtures import AVERAGES, best, proposals
from rivals import figures, stored_bytes

from supernet.build import Supernet
from supernet.checkpoint import SupernetFiles, open_supernet
from supernet.evaluate import Quality, Reference, evaluate
from supernet.loading import load_model
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Subnet
from supernet.text import read_windows

TWICE, TWICE_UP_TO = 0.5, 3.0  # the share of the best rival's KL that is claimed, up to this average
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    ours = parser.add_mutually_exclusive_group(required=True)
    ours.add_argument("--supernet", type=Path)
    ours.add_argument("--rows", type=Path, help="what an earlier run kept of its supernet")
    parser.add_argument("--rivals", type=Path, default=RESULTS / "rivals.json")
    parser.add_argument("--averages", type=float, nargs="+", default=(2.0, *AVERAGES))
    parser.add_argument("--windows", type=int, default=16)
    arguments = parser.parse_args()
    rivals = json.loads(arguments.rivals.read_text())["rows"]
    evidence = kept(arguments.rows) if arguments.rows else measured(arguments)
    print_rows(evidence["rows"], rivals)
    finish(__file__, claims(evidence["rows"], rivals), **evidence)


def kept(path: Path) -> dict[str, Any]:
    """Rows of an earlier run, and how, where and when they were measured."""
    record = json.loads(path.read_text())
    return {key: record[key] for key in ("command", "device", "date", "rows", "recipe")}


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """A supernet's rows, and how it was trained."""
    files = open_supernet(arguments.supernet)
    supernet = files.load()
    chosen = plans(files, supernet, arguments.averages)
    full = load_model(files.info["source"])
    model, tokenizer = full.model, full.tokenizer
    reference = Reference.of(model, read_windows(str(arguments.text / "eval.txt"), tokenizer, arguments.windows, 512))
    found = evaluate(supernet, list(chosen.values()), reference)
    rows = [row_of(supernet, *one, quality) for one, quality in zip(chosen.items(), found, strict=True)]
    return {"rows": rows, "recipe": {name: value for name, value in files.info["recipe"].items() if name != "data"}}


def plans(files: SupernetFiles, supernet: Supernet, averages: Sequence[float]) -> dict[float, Subnet]:
    """The subnet of each average."""
    offered = {average: candidates(files, average) for average in averages}
    return best(supernet, offered, files.reference())


def candidates(files: SupernetFiles, average: float) -> list[Subnet]:
    spec, losses = files.spec, SensitivityTable.load(files.path / SENSITIVITY_FILE).by_choice
    tables = {unit.name for unit in spec.units if unit.is_table}
    space = files.space.whole.restrict(lambda unit, choice: unit not in tables or choice.bits == 8)
    return proposals(spec, space, losses, average)


def row_of(supernet: Supernet, average: float, subnet: Subnet, quality: Quality) -> dict[str, Any]:
    units = [unit for unit in supernet.spec.units if not unit.is_table]
    bits = [subnet[unit.name].bits for unit in units]
    return {
        "average_bits": average,
        "mean_bits": subnet.mean_bits(supernet.spec),
        "linear_bytes": sum(stored_bytes(supernet, unit, subnet[unit.name])[0] for unit in units),
        "units": {str(width): bits.count(width) for width in sorted(set(bits))},
        **figures(quality),
    }


def at_most(rivals: list[dict[str, Any]], average: float) -> list[dict[str, Any]]:
    """Each tool's best row of no more code bits. What HQQ's float zeros take beside them is not held against it."""
    fit = [row for row in rivals if row["average_bits"] <= average]
    return [min((r for r in fit if r["tool"] == tool), key=lambda r: r["kl"]) for tool in {r["tool"] for r in fit}]


def claims(rows: list[dict[str, Any]], rivals: list[dict[str, Any]]) -> list[Claim]:
    found = []
    for row in rows:
        average = row["average_bits"]
        target = TWICE if average <= TWICE_UP_TO else 1.0
        for rival in sorted(at_most(rivals, average), key=lambda r: r["kl"]):
            found.append(Claim(f"{average:g} bits: KL / that of {rival['tool']}", row["kl"] / rival["kl"], target))
    return found


def print_rows(rows: list[dict[str, Any]], rivals: list[dict[str, Any]]) -> None:
    tools = sorted({r["tool"] for r in rivals})
    cells = []
    for row in rows:
        same = {t: [r for r in rivals if r["tool"] == t and r["average_bits"] == row["average_bits"]] for t in tools}
        others = (f"{min(r['kl'] for r in same[t]):.3f}" if same[t] else "-" for t in tools)
        size, units = f"{row['linear_bytes'] / 1e6:.1f}", " ".join(f"{n}x{bits}" for bits, n in row["units"].items())
        cells.append((f"{row['average_bits']:g}", f"{row['mean_bits']:.3f}", size, units, f"{row['kl']:.4f}", *others))
    table(("bits", "code bits", "MB of linears", "units", "bitfleet", *tools), cells)


if __name__ == "__main__":
    main()
