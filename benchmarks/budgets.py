"""Random feasible plans against their memory budgets: no package may take more than it was planned for.

    python benchmarks/budgets.py [--plans 100] [--seed 0] [--jobs 2] [--device device.json]

Shapes from a tiny decoder to 0.5B parameters, tied and untied; contexts, bit-widths, group sizes, threads and budgets
are drawn. Each plan becomes a package and is served twice in fresh processes: the plan's own prompt, and the longest
that the context has room for. The weights are random, of the true number of bytes: memory depends on bytes and not on
values. The device's calibration is measured first, unless a profile is given.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from claims import Claim, finish, table
from shaped import shaped

from planner.costs import Costs
from planner.pipeline import plan
from planner.request import Budget, Workload
from planner.runtimes.onnxruntime import fresh, random_package
from planner.runtimes.onnxruntime.engine import OnnxTimer
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.shapes import HALF_B, HALF_B_UNTIED, SMOLLM2, Shape
from profiles.detect import detect
from profiles.device import DeviceProfile

# Shape, share of the plans, longest context in most of them and in one of ten: long prompts take their time.
SHAPES = (
    (Shape("tiny", 4, 192, 512, 3, 1, 64, 8192), 0.15, 1024, 4096),
    (Shape("small", 8, 512, 1536, 8, 2, 64, 32768), 0.2, 1024, 4096),
    (Shape("small, untied", 6, 640, 1792, 10, 2, 64, 65536, tied=False), 0.15, 1024, 4096),
    (SMOLLM2, 0.3, 512, 2048),
    (HALF_B, 0.1, 256, 768),
    (HALF_B_UNTIED, 0.1, 256, 768),
)
LONG_EVERY = 10
BITS = ((2, 4), (2, 4, 8), (4, 8), (8,))
GROUP_SIZES = (32, 64, 128)
ANSWER = 4


@dataclass(frozen=True)
class Case:
    """Bytes. `own` and `longest` are the peaks with the plan's prompt and with the longest."""

    shape: str
    context: int
    prompt: int
    threads: int
    group_size: int
    mean_bits: float
    budget: int
    promised: int
    own: int
    longest: int

    @property
    def peak(self) -> int:
        return max(self.own, self.longest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", type=int, default=2, help="plans at a time: what a machine is busy with takes no memory"
    )
    parser.add_argument("--device", type=Path, help="a profile of this machine; calibrated anew where it is left out")
    arguments = parser.parse_args()
    device = DeviceProfile.load(arguments.device) if arguments.device else calibrated()
    cases = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for c in pool.map(lambda number: measured(device, arguments.seed, number), range(arguments.plans)):
            cases.append(c)
            over = c.peak / c.promised - 1
            print(f"{len(cases):3} {c.shape:14} {c.context:5} {c.budget / 1e6:7.1f} {over:+.2%}", flush=True)
    print()
    columns = ("shape", "plans", "over budget", "over promise", "closest to its budget", "least of its promise used")
    names = dict.fromkeys(c.shape for c in cases)
    table(columns, [row(name, [c for c in cases if c.shape == name]) for name in names])
    over = max(c.peak / c.promised - 1 for c in cases)
    claims = [
        Claim(f"packages over their budget, of {len(cases)}", sum(c.peak > c.budget for c in cases), 0),
        Claim("peak memory over what was promised, worst", over, 0.03),
    ]
    finish(__file__, claims, cases=[asdict(case) for case in cases])


def calibrated() -> DeviceProfile:
    """This machine with the runtime's own numbers and without a kernel table: times do not matter here."""
    found, _ = detect("cpu")
    device = replace(found, threads=1)
    return replace(device, calibrations=OnnxTimer().calibrate(device))


def measured(device: DeviceProfile, seed: int, number: int) -> Case:
    """Draw a plan, write it and serve it."""
    rng = np.random.default_rng((seed, number))
    shape, _, usual, most = SHAPES[rng.choice(len(SHAPES), p=[share for _, share, _, _ in SHAPES])]
    longest = usual if (number + 1) % LONG_EVERY else most
    context = round(float(np.exp(rng.uniform(np.log(64), np.log(longest)))))
    workload = Workload(context, 1, int(rng.integers(1, max(2, min(context - ANSWER, 512)))))
    divide = [size for size in GROUP_SIZES if shape.hidden % size == 0 == shape.feed_forward % size]
    group_size, bits = int(rng.choice(divide)), BITS[rng.integers(len(BITS))]
    device = replace(device, threads=int(rng.integers(1, (device.threads or 1) + 1)))
    share = float(rng.random())
    runtime = OnnxRuntime()
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        files = shaped(shape, group_size, bits, number, Path(scratch) / "supernet")
        costs = Costs.of(runtime, files.spec, workload, device, files.model_dir)
        least, most = (files.space.at([end] * len(files.space.blocks)) for end in (0, 9))
        low, high = (costs.memory(subnet).total_bytes for subnet in (least, most))
        budget = Budget(round((low + share * (high - low)) * 1.06))  # the planner leaves a band of up to 5 % below it
        made = plan(files, runtime, device, workload, budget, trials=0)
        package = random_package.write(shape, made.subnet, context, device.threads, Path(scratch) / "package")
        peaks = [
            fresh.measure(package, prompt, context, new_tokens=ANSWER, repeats=1).peak_bytes
            for prompt in (workload.prompt_tokens, context - ANSWER)
        ]
    return Case(
        shape.name, context, workload.prompt_tokens, device.threads or 1, group_size, made.chosen.mean_bits,
        budget.memory_bytes, made.chosen.memory_bytes, *peaks,
    )  # fmt: skip


def row(name: str, cases: list[Case]) -> tuple[str, ...]:
    used = [c.peak / c.promised for c in cases]
    return (
        name, str(len(cases)), str(sum(c.peak > c.budget for c in cases)), str(sum(u > 1 for u in used)),
        f"{max(c.peak / c.budget for c in cases):.1%}", f"{min(used):.1%}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
