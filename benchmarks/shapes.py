"""Promises of memory and time for shapes that nothing was tuned on: 12 plans of SmolLM2's, 12 of one of 0.5B.

    python benchmarks/shapes.py [--device device.json] [--memory]

Plans from 2 to 8 bits at contexts from 256 to 4096 tokens become packages with random weights of the true number of
bytes. Each is served in fresh processes: the plan's prompt of 128 tokens, timed, and for memory the longest prompt that
the context has room for (LONGEST tokens at most: prompts are read in chunks, and reading takes its time). The larger
shape has an untied head in every other plan. Times need a quiet machine and its full profile (`bitfleet profile
device`); `--memory` leaves them out. About nine minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from claims import Claim, finish, table
from shaped import shaped

from commands import names
from planner.costs import Costs
from planner.pipeline import plan
from planner.request import Budget, Workload
from planner.runtimes.onnxruntime import fresh, random_package
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.shapes import HALF_B, HALF_B_UNTIED, SMOLLM2, Shape
from profiles.device import DeviceProfile

# Context, bits to choose from, group size, and where the budget lies between the smallest (0) and the largest (1) plan.
CASES = (
    (512, (2,), 64, 0.0), (1024, (2, 4), 64, 0.3), (2048, (2, 4, 8), 64, 0.2), (4096, (2, 4, 8), 64, 0.4),
    (512, (4,), 32, 0.0), (1024, (4,), 64, 1.0), (256, (4, 8), 64, 0.3), (4096, (4, 8), 64, 0.6),
    (512, (2, 8), 64, 0.8), (2048, (8,), 32, 1.0), (256, (8,), 64, 1.0), (1024, (8,), 64, 0.5),
)  # fmt: skip
PROMPT, ANSWER, LONGEST = 128, 4, 400
MEMORY, TIME = 0.03, 0.20
TRIES = 3  # other work only ever adds time: a promise is broken if it is broken so often


@dataclass(frozen=True)
class Case:
    shape: str
    context: int
    mean_bits: float
    head_bits: int
    promised_bytes: int
    peak_bytes: int
    promised_ms: float  # NaN where times are left out
    tpot_ms: float

    @property
    def memory_over(self) -> float:
        return self.peak_bytes / self.promised_bytes - 1

    @property
    def time_over(self) -> float:
        return self.tpot_ms / self.promised_ms - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=Path, help="a profile of this machine; the default is the cached one")
    parser.add_argument("--memory", action="store_true", help="measure memory alone")
    arguments = parser.parse_args()
    device = DeviceProfile.load(arguments.device) if arguments.device else names.own_device(names.RUNTIME)
    cases = []
    for number, case in enumerate(CASES):
        for shape in (SMOLLM2, HALF_B_UNTIED if number % 2 else HALF_B):
            cases.append(measured(shape, *case, device, not arguments.memory))
    rows = [
        (
            c.shape, str(c.context), f"{c.mean_bits:.2f}", str(c.head_bits), f"{c.promised_bytes / 1e6:.1f}",
            f"{c.peak_bytes / 1e6:.1f}", f"{c.memory_over:+.1%}", f"{c.promised_ms:.2f}", f"{c.tpot_ms:.2f}",
            f"{c.time_over:+.1%}",
        )
        for c in cases
    ]  # fmt: skip
    pairs = ("MB, promised", "peak", "over", "ms a token, promised", "measured", "over")
    table(("shape", "context", "bits", "head", *pairs), rows)
    over = f"over {len(cases)} plans, worst"
    claims = [Claim(f"peak memory over its promise, {over}", max(c.memory_over for c in cases), MEMORY)]
    if not arguments.memory:
        claims.append(Claim(f"time per token over its promise, {over}", max(c.time_over for c in cases), TIME))
    found = [{k: None if v != v else v for k, v in asdict(case).items()} for case in cases]
    finish(__file__, claims, cases=found, kernels=len(device.kernels.entries), profile=device.date)


def measured(
    shape: Shape, context: int, bits: Iterable[int], group_size: int, share: float, device: DeviceProfile, timed: bool
) -> Case:
    runtime, workload = OnnxRuntime(), Workload(context, 1, PROMPT)
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        files = shaped(shape, group_size, tuple(bits), context, Path(scratch) / "supernet")
        costs = Costs.of(runtime, files.spec, workload, device, files.model_dir)
        ends = (files.space.at([end] * len(files.space.blocks)) for end in (0, 9))
        low, high = (costs.memory(subnet).total_bytes for subnet in ends)
        budget = Budget(round((low + share * (high - low)) * 1.06))  # the planner leaves a band of up to 5 % below it
        chosen = plan(files, runtime, device, workload, budget, trials=0).chosen
        package = random_package.write(shape, chosen.subnet, context, device.threads, Path(scratch) / "package")
        longest = min(LONGEST, context - ANSWER)
        peak = fresh.measure(package, longest, context, new_tokens=ANSWER, repeats=1).peak_bytes
        tpot, tries = math.nan, TRIES if timed else 0
        while tries and not tpot <= chosen.tpot_ms * (1 + TIME):
            found = fresh.measure(package, PROMPT, context)
            tpot, peak, tries = min(found.tpot_ms, tpot), max(peak, found.peak_bytes), tries - 1
    head = next(unit.name for unit in reversed(files.spec.units) if unit.is_table)
    return Case(
        shape.name,
        context,
        chosen.mean_bits,
        chosen.subnet[head].bits,
        chosen.memory_bytes,
        peak,
        chosen.tpot_ms if timed else math.nan,
        tpot,
    )


if __name__ == "__main__":
    main()
