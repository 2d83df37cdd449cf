"""What a plan promises of a package beside what the package does: bytes, memory, time, logits.

    python benchmarks/promises.py [--supernet DIR] [--device device.json]

Plans the supernet (the embedded default's unless one is given) for budgets between its smallest and its largest subnet
at several contexts and prompts, exports each plan with onnxruntime-genai's own graph, loads it in a fresh process and
measures it. What counts is by how much a measurement is over its promise: memory is promised for any prompt that fits,
so a short one takes less. `shapes.py` and `budgets.py` do the same for other shapes, without a supernet.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims import Claim, finish, table

from commands import names
from planner.answers import divergence
from planner.costs import Costs
from planner.package import write_package
from planner.pipeline import plan
from planner.request import Budget, Workload
from planner.runtimes import RUNTIMES
from profiles.device import DeviceProfile
from supernet.space import Subnet

# context, prompt, and where the budget lies between the smallest (0) and the largest (1) subnet
CASES = [
    (512, 128, 0.1), (512, 128, 0.35), (512, 64, 0.6), (1024, 256, 0.2), (1024, 512, 0.8), (2048, 128, 0.45),
    (4096, 512, 1.0), (4096, 128, 0.05),
]  # fmt: skip
MEMORY, TIME, KL = 0.03, 0.20, 0.01


@dataclass(frozen=True)
class Case:
    context: int
    prompt: int
    mean_bits: float
    disk: tuple[int, int]  # promised, measured
    memory: tuple[int, int]
    ttft: tuple[float, float]
    tpot: tuple[float, float]
    kl: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supernet", help="a folder that `bitfleet train` made; the default is the embedded model's")
    parser.add_argument("--device", type=Path, help="a profile of this machine; the default is the cached one")
    arguments = parser.parse_args()
    files = names.trained_supernet(arguments.supernet) if arguments.supernet else names.default_supernet()
    device = DeviceProfile.load(arguments.device) if arguments.device else names.own_device(names.RUNTIME)
    cases = [measured(files, device, *case) for case in CASES]
    rows = [
        (
            f"{c.context} / {c.prompt}", f"{c.mean_bits:.2f}", *c.disk, *(f"{b / 1e6:.0f}" for b in c.memory),
            *(f"{ms:.0f}" for ms in c.ttft), *(f"{ms:.2f}" for ms in c.tpot), f"{c.kl:.4f}",
        )
        for c in cases
    ]  # fmt: skip
    pairs = ("bytes, promised", "on disk", "MB, promised", "peak", "TTFT, promised", "ms", "token, promised", "ms")
    table(("context / prompt", "bits", *pairs, "KL"), rows)
    finish(__file__, claims(cases), cases=[vars(case) for case in cases], profile=device.date)


def measured(files: Any, device: DeviceProfile, context: int, prompt: int, share: float) -> Case:
    runtime, workload = RUNTIMES[names.RUNTIME](), Workload(context, 1, prompt)

    costs = Costs.of(runtime, files.spec, workload, device, files.model_dir)

    def peak(subnet: Subnet) -> int:
        return costs.memory(subnet).total_bytes

    least, most = (peak(files.space.uniform(files.spec, bits)) for bits in (2, 8))
    budget = Budget(round(least + share * (most - least)))
    made = plan(files, runtime, device, workload, budget, measure=None, trials=50)
    with tempfile.TemporaryDirectory() as scratch:
        package = write_package(runtime, files, made, Path(scratch) / "package")
        found = runtime.engine().server(package.path).measure(workload)
        disk = sum((package.path / name).stat().st_size for name in runtime.packages.weight_files)
        kl, _ = divergence(runtime.engine().speaker(package.path), package.plan, files)
    c = made.chosen
    return Case(
        context, prompt, c.mean_bits, (c.disk_bytes, disk), (c.memory_bytes, found.peak_bytes),
        (c.ttft_ms, found.ttft_ms), (c.tpot_ms, found.tpot_ms), kl,
    )  # fmt: skip


def over(pair: tuple[float, float]) -> float:
    promised, found = pair
    return found / promised - 1


def claims(cases: list[Case]) -> list[Claim]:
    worst = f"worst of {len(cases)} plans"
    return [
        Claim(f"bytes of the weight file off by, {worst}", max(abs(c.disk[0] - c.disk[1]) for c in cases), 0),
        Claim(f"peak memory over its promise, {worst}", max(over(c.memory) for c in cases), MEMORY),
        Claim(f"time per token over its promise, {worst}", max(over(c.tpot) for c in cases), TIME),
        Claim(f"KL per token of package and subnet, {worst}", max(c.kl for c in cases), KL),
    ]


if __name__ == "__main__":
    main()
