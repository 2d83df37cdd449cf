"""What one more device costs: planning on cached numbers, and the time that commands take to answer.

    python benchmarks/planning.py [--supernet DIR]

Every run is a process of its own, imports included, for devices of the catalogue. The first plan of a supernet measures
what stands beside every plan too: uniform subnets, the types of the runtimes' own tools. The others are of one more
device each: its finalists are measured on held-out text as for any new plan, and so is a uniform subnet that no plan
before had beside it. The same plan once more finds all of that measured; the median of its repeats counts, as that of
`--help`. Seconds of the processor are of all cores together.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from claims import Claim, finish, table

from commands import names

ROOT = Path(__file__).resolve().parent.parent
# device, budget: none fits every layer at 8 bits in ONNX Runtime, and the last none in llama.cpp
FIRST = ("laptop-ryzen-7840u-16gb", "240MB")
CASES = [
    ("laptop-i5-1240p-8gb", "230MB"),
    ("raspberry-pi-5-8gb", "245MB"),
    ("steam-deck-16gb", "260MB"),
    ("desktop-ryzen-5600-16gb", "175MB"),
]
REPEATS = 5
CONTEXT = 512


@dataclass(frozen=True)
class Took:
    """Seconds of a process by the clock, and of all cores together."""

    clock: float
    cores: float

    @classmethod
    def by(cls, *arguments: str) -> Took:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, str(ROOT / "cli.py"), *arguments], check=True, capture_output=True)
        clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def median(found: Sequence[Took]) -> Took:
    return Took(statistics.median(one.clock for one in found), statistics.median(one.cores for one in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supernet", help="a folder that `bitfleet train` made; the default is the embedded model's")
    arguments = parser.parse_args()
    files = names.trained_supernet(arguments.supernet) if arguments.supernet else names.default_supernet()
    rows, planned, again, exact = [], [], [], []
    (files.path / "evaluations.json").unlink(missing_ok=True)
    for device, memory in (FIRST, *CASES):
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "plan.json"
            options = ["--mem", memory, "--context", str(CONTEXT), "--device", device, "--out", str(out)]
            planned.append(Took.by("plan", str(files.path), *options))
            again.append(median([Took.by("plan", str(files.path), *options) for _ in range(REPEATS)]))
            traces = json.loads(out.read_text())["search"]
        exact.append(sum(trace["seconds"] for trace in traces if trace["solver"] == "HiGHS"))
        name = f"plan for {device} in {memory}" + ("" if rows else ", the first")
        rows.append((name, *shown(planned[-1]), *shown(again[-1]), f"{exact[-1]:.3f}"))
    helped = median([Took.by("--help") for _ in range(REPEATS)])
    rows.append(("bitfleet --help", *shown(helped), "", "", ""))
    table(("", "seconds", "of cores", "once more", "of cores", "of which the exact solution"), rows)
    claims = [
        Claim("seconds to plan for one more device, worst", max(one.clock for one in planned[1:]), 8),
        Claim("seconds when nothing new is measured, worst", max(one.clock for one in again), 2),
        Claim("of which the exact solution, worst", max(exact), 2),
        Claim("seconds of bitfleet --help, median", helped.clock, 0.3),
    ]
    finish(__file__, claims, planned=list(map(asdict, planned)), again=list(map(asdict, again)), help=asdict(helped))


def shown(took: Took) -> tuple[str, str]:
    return f"{took.clock:.2f}", f"{took.cores:.2f}"


if __name__ == "__main__":
    main()
