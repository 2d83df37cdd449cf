"""What one more device costs: planning on cached sensitivities, and the time that commands take to answer.

    python benchmarks/planning.py [--supernet DIR]

Every run is a process of its own, imports included, for a device of the catalogue that was not planned for before: the
finalists are measured on held-out text as for any new plan. The same plan once more finds all of that measured; the
median of its repeats counts, as that of `--help`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims import Claim, finish, table

from commands import names

ROOT = Path(__file__).resolve().parent.parent
# device, budget: none of them fits every layer at 8 bits
CASES = [("laptop-i5-1240p-8gb", "230MB"), ("raspberry-pi-5-8gb", "245MB"), ("steam-deck-16gb", "260MB")]
REPEATS = 5
CONTEXT = 512


def seconds(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / "cli.py"), *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supernet", help="a folder that `bitfleet train` made; the default is the embedded model's")
    arguments = parser.parse_args()
    files = names.trained_supernet(arguments.supernet) if arguments.supernet else names.default_supernet()
    rows, planned, again, exact = [], [], [], []
    for device, memory in CASES:
        forget(files.path)
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "plan.json"
            options = ["--mem", memory, "--context", str(CONTEXT), "--device", device, "--out", str(out)]
            planned.append(seconds("plan", str(files.path), *options))
            again.append(statistics.median(seconds("plan", str(files.path), *options) for _ in range(REPEATS)))
            traces = json.loads(out.read_text())["search"]
        exact.append(sum(trace["seconds"] for trace in traces if trace["solver"] == "HiGHS"))
        rows.append((f"plan for {device} in {memory}", f"{planned[-1]:.2f}", f"{again[-1]:.2f}", f"{exact[-1]:.3f}"))
    helped = [seconds("--help") for _ in range(REPEATS)]
    rows.append(("bitfleet --help", f"{statistics.median(helped):.2f}", "", ""))
    table(("", "seconds", "once more", "of which the exact solution"), rows)
    claims = [
        Claim("seconds to plan for one more device, worst", max(planned), 8),
        Claim("seconds when nothing new is measured, worst", max(again), 2),
        Claim("of which the exact solution, worst", max(exact), 2),
        Claim("seconds of bitfleet --help, median", statistics.median(helped), 0.3),
    ]
    finish(__file__, claims, seconds=planned, again=again, help=helped)


def forget(supernet: Path) -> None:
    """Drop the measured quality of earlier plans, so that every plan measures its own finalists."""
    (supernet / "evaluations.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
