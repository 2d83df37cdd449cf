"""Mutated inputs for every reader: each must be read, or refused with an error that the exit codes document.

A seed of every kind of file is mutated: bits flipped, cut short, pieces repeated or removed, other encodings; values of
other types, huge numbers, NaN, deep nesting, keys twice, missing and unknown. What is read is also used as commands use
it. Wrong are: an exit code of 70, more than 5 s for one input, a process of more than 1 GB.

    python benchmarks/fuzz.py [--inputs 100000] [--reader NAME] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fuzz_mutations import mutated
from fuzz_readers import READERS, Reader

from commands.exits import BUG, explain

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
SLOW_S, LARGE_BYTES = 5.0, 10**9


class Slow(BaseException):
    """One input took longer than it may."""


@dataclass
class Outcome:
    """What became of a reader's inputs: how many were read, and refused by exit code, and the first wrong ones."""

    read: int = 0
    refused: dict[int, int] = field(default_factory=dict)
    slowest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


def fuzz(reader: Reader, inputs: int, seed: int, folder: Path, limit_s: float = SLOW_S) -> Outcome:
    """Give `reader` so many mutations of its seed, which lies in `folder`."""
    rng, found, data = random.Random(f"{reader.name} {seed}"), Outcome(), reader.seed(folder)
    (folder / reader.file).write_bytes(data)
    reader.use(folder)  # the seed itself is read
    signal.signal(signal.SIGALRM, _slow)
    for number in range(inputs):
        raw = mutated(data, rng, reader.json)
        (folder / reader.file).write_bytes(raw)
        start = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            reader.use(folder)
            found.read += 1
        except Slow:
            found.wrong.append(f"{number}: more than {limit_s:.0f} s")
        except Exception as error:
            code, line = explain(error)
            found.refused[code] = found.refused.get(code, 0) + 1
            if code == BUG:
                found.wrong.append(f"{number}: {line[:200]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        found.slowest_s = max(found.slowest_s, time.perf_counter() - start)
    return found


def _slow(*_: Any) -> None:
    raise Slow


def one(name: str, inputs: int, seed: int) -> dict[str, Any]:
    """A reader in this process, which is its own: its peak memory is the reader's."""
    with tempfile.TemporaryDirectory(prefix="bitfleet-fuzz-") as scratch:
        reader = READERS[name]
        start, found = time.perf_counter(), fuzz(reader, inputs, seed, Path(scratch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    wrong = found.wrong if peak <= LARGE_BYTES else [*found.wrong, f"the process took {peak} bytes"]
    return {
        "inputs": inputs, "read": found.read, "refused": {str(code): n for code, n in sorted(found.refused.items())},
        "wrong": len(wrong), "first_wrong": wrong[:5], "slowest_s": round(found.slowest_s, 3), "peak_bytes": peak,
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="over all readers")
    parser.add_argument("--reader", choices=READERS, help="this one alone, in this process")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.reader:
        print(json.dumps(one(arguments.reader, arguments.inputs, arguments.seed)))
        return
    each = -(-arguments.inputs // len(READERS))
    rows: dict[str, Mapping[str, Any]] = {}
    print("READER            INPUTS    READ REFUSED  WRONG  SLOWEST     PEAK    TIME")
    for name in READERS:
        line = [sys.executable, __file__, "--reader", name, "--inputs", str(each), "--seed", str(arguments.seed)]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
        rows[name] = row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{name:<16} {row['inputs']:>7} {row['read']:>7} {sum(row['refused'].values()):>7} {row['wrong']:>6} "
            f"{row['slowest_s']:>6.2f} s {row['peak_bytes'] / 1e6:>5.0f} MB {row['seconds']:>5.0f} s",
            flush=True,
        )
        for line_of in row["first_wrong"]:
            print(f"    {line_of}", flush=True)
    wrong = sum(row["wrong"] for row in rows.values())
    inputs = each * len(READERS)
    result = {"benchmark": "fuzz", "inputs": inputs, "wrong": wrong, "seed": arguments.seed, "readers": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
