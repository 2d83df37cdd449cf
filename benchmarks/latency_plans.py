"""Plans with a limit of time per token, beside the time that their packages take: how many of them break it.

    python benchmarks/latency_plans.py SUPERNET --device device.json [--plans 50] [--runtime llamacpp] [--seed 0]

Workloads and limits are drawn: a context, a prompt, memory for a mixture, and a time per token between that of the
fastest subnet and that of the widest. Each is planned without measuring losses, exported, and served in a fresh
process. The profile is to be a full one of this machine, which is to be quiet meanwhile. A machine that others share is
not as fast as its profile all the time: some of the profile's products are timed again right after a package, and a
plan is judged where they take no more than STEADY times what they took; a package is served up to TRIES times for that.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from claims import Claim, finish, table

from commands import names
from planner.costs import Costs
from planner.package import write_package
from planner.pipeline import plan
from planner.request import Budget, Workload
from planner.runtimes import RUNTIMES
from profiles.device import DeviceProfile
from profiles.kernels import KernelEntry
from supernet.checkpoint import SupernetFiles

CONTEXTS, PROMPTS = (512, 1024, 2048), (32, 128, 256, 400)
BEYOND, BROKEN = 1.05, 1  # of the limit, and how many plans may take longer
TRIES, PAUSE_S, STEADY = 4, 5.0, 1.1
TIMED_AGAIN = 8  # products


@dataclass(frozen=True)
class Case:
    context: int
    prompt: int
    mean_bits: float
    limit_ms: float
    promised_ms: float
    measured_ms: float
    slower: float  # what the profile's products took right after, over what they took when it was made

    @property
    def of_limit(self) -> float:
        return self.measured_ms / self.limit_ms

    @property
    def judged(self) -> bool:
        return self.slower <= STEADY or self.of_limit <= BEYOND


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("supernet", help="a folder that `bitfleet train` made")
    parser.add_argument("--device", type=Path, required=True, help="a full profile of this machine")
    parser.add_argument("--plans", type=int, default=50)
    parser.add_argument("--runtime", choices=("llamacpp", "onnxruntime"), default="llamacpp")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    files, device = names.trained_supernet(given.supernet), DeviceProfile.load(given.device)
    draw, cases = random.Random(given.seed), []
    for _ in range(given.plans):
        cases.append(measured(files, device, given.runtime, draw))
        print(*row(cases[-1]), sep="  ", file=sys.stderr, flush=True)
    table(
        ("context / prompt", "bits", "limit, ms a token", "promised", "measured", "of the limit", "machine"),
        [row(case) for case in cases],
    )
    judged = [case for case in cases if case.judged]
    broken = sum(case.of_limit > BEYOND for case in judged)
    claims = [Claim(f"plans whose packages take over {BEYOND:g} of the limit, of {len(judged)}", broken, BROKEN)]
    print(f"of the limit, in the median: {median(case.of_limit for case in cases):.3f}")
    print(f"not judged, the machine being over {STEADY:g} times as slow as its profile: {len(cases) - len(judged)}")
    finish(__file__, claims, cases=[asdict(case) for case in cases], profile=device.date)


def measured(files: SupernetFiles, device: DeviceProfile, name: str, draw: random.Random) -> Case:
    runtime = RUNTIMES[name]()
    workload = Workload(draw.choice(CONTEXTS), 1, draw.choice(PROMPTS))
    costs = Costs.of(runtime, files.spec, workload, device, files.model_dir)
    subnets = [files.space.uniform(files.spec, bits) for bits in files.space.bits(files.spec)]
    times = [costs.latency(subnet).tpot_ms for subnet in subnets]
    memory = [costs.memory(subnet).total_bytes for subnet in subnets]
    # The planner leaves a promise's band below a limit, so limits begin where the fastest subnet has one.
    least, most = 1.3 * min(times), 1.2 * max(times[1:])
    room = round(min(memory) + draw.uniform(0.5, 1.2) * (max(memory) - min(memory)))
    limit = least + draw.random() * max(0.0, most - least)
    made = plan(files, runtime, device, workload, Budget(room, tpot_ms=limit), measure=None, trials=0)
    with tempfile.TemporaryDirectory() as scratch:
        package = write_package(runtime, files, made, Path(scratch) / "package")
        server, timer = runtime.engine().server(package.path), runtime.engine().timer()
        chosen, found = made.chosen, []
        for number in range(TRIES):
            time.sleep(PAUSE_S if number else 0.0)
            taken = server.measure(workload).tpot_ms
            slower = timer.slower(timed_again(device, name), device.last_level_cache_bytes)
            case = Case(
                workload.context, workload.prompt_tokens, chosen.mean_bits, limit, chosen.tpot_ms, taken, slower
            )
            found.append(case)
            if case.judged:
                return case
    return min(found, key=lambda case: case.measured_ms)


def timed_again(device: DeviceProfile, runtime: str) -> list[KernelEntry]:
    """Products of one row, spread over the profile's."""
    few = [entry for entry in device.kernels.entries if entry.runtime == runtime and entry.rows == 1]
    return few[:: max(1, len(few) // TIMED_AGAIN)]


def row(case: Case) -> tuple[str, ...]:
    return (
        f"{case.context} / {case.prompt}", f"{case.mean_bits:.2f}", f"{case.limit_ms:.2f}", f"{case.promised_ms:.2f}",
        f"{case.measured_ms:.2f}", f"{case.of_limit:.3f}", f"{case.slower:.2f}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
