"""What serving with llama.cpp is promised to take, beside what it takes: two shapes, mixes of types, contexts to 8192,
types of the KV cache.

    python benchmarks/llamacpp_costs.py [--device device.json] [--memory] [--quick]

GGUF files with random codes of the true number of bytes are served in fresh processes: a prompt of 32 to 900 tokens,
timed, and for memory the longest prompt that the context has room for (LONGEST tokens at most). A plain model of bytes
over bandwidth stands beside the times. Times need a quiet machine and a full profile of llama.cpp on it (`--device`),
or `--profile`, which measures one first; `--memory` leaves them out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from claims import Claim, finish, table

from planner.request import Workload
from planner.runtimes.base import DECODE, PREFILL
from planner.runtimes.llamacpp import amounts, fresh, latency, memory, random_gguf
from planner.runtimes.llamacpp.engine import LlamaTimer
from planner.runtimes.llamacpp.formats import type_of
from planner.runtimes.llamacpp.serving import cache_of
from planner.runtimes.shapes import HALF_B, HALF_B_UNTIED, SMOLLM2, Shape
from profiles.detect import detect
from profiles.device import DeviceProfile
from profiles.kernels import KernelTable
from supernet.space import Choice, Subnet

SYM2, SYM4, SYM5, SYM8 = (Choice(2, 64, "sym"), *(Choice(bits, 32, "sym") for bits in (4, 5, 8)))
INT4, INT5 = Choice(4, 32), Choice(5, 32)
# The choices that layers take in turns, the tables' choice, context, type of the KV cache, tokens of the prompt.
CASES = (
    ((SYM4,), SYM8, 256, "q8_0", 32), ((SYM4,), SYM4, 1024, "f16", 300), ((SYM8,), SYM8, 2048, "q4_0", 600),
    ((SYM4, SYM8), SYM8, 4096, "q8_0", 128), ((INT4,), SYM8, 512, "f16", 200), ((SYM5,), SYM8, 8192, "q4_0", 900),
    ((SYM4, SYM5, SYM8), SYM4, 2048, "f16", 500), ((INT5, SYM4), SYM8, 1024, "q8_0", 400),
    ((SYM8, SYM4, SYM4), SYM4, 8192, "f16", 900), ((INT4, SYM8), SYM4, 4096, "q4_0", 128),
    ((SYM2, SYM4, SYM4, SYM4), SYM8, 512, "q4_0", 64), ((SYM2, SYM8, SYM8), SYM8, 256, "f16", 128),
    ((SYM4,), SYM8, 8192, "q8_0", 250),
)  # fmt: skip
ANSWER, LONGEST = 4, 160
TRIES = 3  # other work only ever adds time


@dataclass(frozen=True)
class Case:
    shape: str
    types: str
    context: int
    cache: str
    prompt: int
    promised_bytes: int
    peak_bytes: int
    promised_tpot_ms: float | None = None
    tpot_ms: float | None = None
    promised_ttft_ms: float | None = None
    ttft_ms: float | None = None
    plain_tpot_ms: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=Path, help="a profile of this machine with llama.cpp's products")
    parser.add_argument("--profile", action="store_true", help="measure such a profile first")
    parser.add_argument("--memory", action="store_true", help="measure memory alone, with the usual costs")
    parser.add_argument("--quick", action="store_true", help="one shape alone, and a quick profile")
    arguments = parser.parse_args()
    if arguments.device:
        device = DeviceProfile.load(arguments.device)
    else:
        device, _ = detect("cpu", measure_bandwidth=not arguments.memory)
        device = profiled(device, arguments.quick) if arguments.profile else device
    timed = not arguments.memory
    shapes = (SMOLLM2,) if arguments.quick else (SMOLLM2, HALF_B)
    cases = []
    for number, case in enumerate(CASES):
        for shape in shapes:
            used = HALF_B_UNTIED if shape is HALF_B and number % 3 == 2 else shape
            cases.append(measured(used, *case, device, timed))
            print(*row(cases[-1]), sep="  ", file=sys.stderr, flush=True)
    heads = (
        "shape",
        "types",
        "context",
        "cache",
        "prompt",
        "MB, promised",
        "peak",
        "off",
        "ms a token",
        "measured",
        "plain",
        "first",
    )
    table((*heads, "measured"), [row(case) for case in cases])
    finish(__file__, list(claims(cases)), cases=[asdict(case) for case in cases], kernels=len(device.kernels.entries))


def profiled(device: DeviceProfile, quick: bool) -> DeviceProfile:
    timer = LlamaTimer()
    device = replace(device, threads=timer.best_threads(device))
    entries = tuple(timer.kernels(device, quick))
    device = replace(device, kernels=KernelTable(entries, datetime.now(UTC).date().isoformat()))
    return replace(device, calibrations=timer.calibrate(device, quick))


def measured(
    shape: Shape, turns: tuple[Choice, ...], tables: Choice, context: int, cache: str, prompt: int,
    device: DeviceProfile, timed: bool,
) -> Case:  # fmt: skip
    spec = shape.spec()
    chosen = Subnet.of({u.name: tables if u.is_table else turns[(u.layer or 0) % len(turns)] for u in spec.units})
    workload = Workload(context, 1, prompt, cache)
    types = "+".join(type_of(choice).name for choice in turns) + f" {type_of(tables).name}"
    promised = sum(item.bytes for item in memory.items(spec, chosen, workload, device))
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        package = random_gguf.write(shape, chosen, context, device.threads, Path(scratch) / "package", kv_type=cache)
        longest = min(LONGEST, context - ANSWER)
        peak = fresh.measure(package, longest, context, new_tokens=ANSWER, repeats=1).peak_bytes
        if not timed:
            return Case(shape.name, types, context, cache, prompt, promised, peak)
        found = [fresh.measure(package, prompt, context) for _ in range(TRIES)]
    times = {phase: sum(i.ms for i in latency.items(spec, chosen, workload, device, phase)) for phase in
             (PREFILL, DECODE)}  # fmt: skip
    read = sum(
        amounts.weight_bytes(unit, chosen[unit.name]) for unit in spec.units if spec.tied or unit.layer is not None
    )
    read += memory.kv_bytes(spec, prompt, 1, cache_of(workload))
    plain = 1e3 * read / device.bandwidth_bytes_per_s if device.bandwidth_bytes_per_s else None
    return Case(
        shape.name, types, context, cache, prompt, promised, max(peak, *(one.peak_bytes for one in found)),
        times[DECODE], min(one.tpot_ms for one in found), times[PREFILL], min(one.ttft_ms for one in found), plain,
    )  # fmt: skip


def row(case: Case) -> tuple[str, ...]:
    times = (case.promised_tpot_ms, case.tpot_ms, case.plain_tpot_ms, case.promised_ttft_ms, case.ttft_ms)
    sizes = (f"{case.promised_bytes / 1e6:.1f}", f"{case.peak_bytes / 1e6:.1f}")
    off = f"{case.promised_bytes / case.peak_bytes - 1:+.1%}"
    return (
        case.shape,
        case.types,
        str(case.context),
        case.cache,
        str(case.prompt),
        *sizes,
        off,
        *(f"{ms:.1f}" if ms else "-" for ms in times),
    )


def claims(cases: list[Case]) -> Iterator[Claim]:
    off = [case.promised_bytes / case.peak_bytes - 1 for case in cases]
    over = f"over {len(cases)} points"
    yield Claim(f"peak memory above its promise, worst {over}", -min(off), 0.0)
    yield Claim(f"promise above the peak memory, worst {over}", max(off), 0.05)
    yield Claim(f"promise off the peak memory, mean {over}", mean(map(abs, off)), 0.02)
    pairs: tuple[tuple[str, str, str, float, float], ...] = (
        ("time per token", "promised_tpot_ms", "tpot_ms", 0.08, 0.20),
        ("time to first token", "promised_ttft_ms", "ttft_ms", 0.12, 0.35),
    )
    for name, promised, measured, most, worst in pairs:
        errors = [abs(_of(case, promised) / _of(case, measured) - 1) for case in cases if getattr(case, measured)]
        if errors:
            yield Claim(f"{name} off its promise, mean {over}", mean(errors), most)
            yield Claim(f"{name} off its promise, worst {over}", max(errors), worst)


def _of(case: Case, name: str) -> float:
    value: Any = getattr(case, name)
    return float(value)


if __name__ == "__main__":
    main()
