"""How fast our GGUF files answer beside llama.cpp's own files of equal or more bytes, in one run, and what both lose.

    python benchmarks/gguf_decode.py --text ../shared/text --supernet FOLDER [--device device.json] [--own TYPE ...]

For each of llama.cpp's own files the plan is that of `bitfleet plan --runtime llamacpp --disk ITS-BYTES --latency T`,
where T is the time of the fastest of its own files of as many bytes or more, as the profile would promise it: what the
machine takes now for the uniform 4-bit subnet is what its promise stands for, and a limit leaves the room that every
promise of time has. All packages then take turns, each time in a fresh process, and a ratio is the median of those of
the turns: what else the machine does meets both. Times need a quiet machine; without a profile of llama.cpp on it
(`--device`) a quick one is measured first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from claims import Claim, finish, table
from gguf_files import add_beside, against
from gguf_losses import Loss, loss_of
from gguf_rivals import Made, scene_in
from llamacpp_costs import profiled

from commands.measuring import measured_quality
from planner import pipeline
from planner.bands import bands
from planner.limits import TPOT
from planner.plan import Plan
from planner.request import Budget, Workload
from planner.runtimes.base import DECODE
from planner.runtimes.llamacpp import fresh, latency
from planner.runtimes.llamacpp.runtime import LlamaCpp
from planner.runtimes.llamacpp.serving import WEIGHTS, Serving
from profiles.detect import detect
from profiles.device import DeviceProfile
from records.errors import BudgetError
from supernet.checkpoint import SupernetFiles, open_supernet
from supernet.loading import model_name

OWN = ("Q4_0=0.5", "Q3_K_M=1", "Q4_K_M=1")
WORKLOAD = Workload(2048)
TURNS = 5
SPARE = 0.92  # of the time that our package may take: a plan is a prediction
SAME_TYPES = ("Q4_0",)  # the uniform 4-bit subnet has this file's very types and its speed: nothing is spared there


@dataclass(frozen=True)
class Row:
    """A file of llama.cpp's own and ours for its bytes, with the milliseconds a token that each took in each turn."""

    own: Made
    share: float
    own_ms: tuple[float, ...]
    limit_ms: float
    bytes: int
    mean_bits: float
    promised_ms: float | None
    ms: tuple[float, ...]
    loss: Loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_beside(parser, "--own", OWN)
    parser.add_argument("--device", type=Path, help="a profile of this machine with llama.cpp's products")
    given = parser.parse_args()
    wanted = [against(text) for text in given.own]
    device, files = device_of(given.device), open_supernet(given.supernet)
    with scene_in(given, given.made) as (scene, folder):
        made, theirs = [], []
        for own, _ in wanted:
            made.append(scene.made(own, folder / "own" / own.folder))
            theirs.append(served((given.made or folder / "own") / own.folder, folder / f"turn-{own.folder}", device))
        scale = promised_for_spent(files, device, folder / "uniform")
        limits = [scale * ms for ms in limits_ms(made, [least_ms(package) for package in theirs])]
        plans = [planned(files, one.bytes, limit, device) for one, limit in zip(made, limits, strict=True)]
        ours = [folder / "ours" / own.folder for own, _ in wanted]
        losses = []
        for plan, package in zip(plans, ours, strict=True):
            package.mkdir(parents=True)
            LlamaCpp().packages.write(files, plan.subnet, WORKLOAD, device.threads, package)
            losses.append(loss_of(package, scene.reference, files.subnet_model(plan.subnet)))
        turns = taken_in_turns([*theirs, *ours])
        rows = [
            Row(made[i], wanted[i][1], turns[theirs[i]], limits[i], (ours[i] / WEIGHTS).stat().st_size,
                plans[i].chosen.mean_bits, plans[i].chosen.tpot_ms, turns[ours[i]], losses[i])
            for i in range(len(wanted))
        ]  # fmt: skip
    print_rows(rows)
    finish(__file__, list(claims(rows)), model=model_name(given.model), rows=[asdict(row) for row in rows],
           recipe=files.info["recipe"], turns=TURNS)  # fmt: skip


def device_of(path: Path | None) -> DeviceProfile:
    if path is not None:
        return DeviceProfile.load(path)
    device, _ = detect("cpu")
    return profiled(device, quick=True)


def served(package: Path, folder: Path, device: DeviceProfile) -> Path:
    """The package's file in the new `folder`, served with the context and the threads that ours is served with."""
    folder.mkdir()
    (folder / WEIGHTS).symlink_to((package / WEIGHTS).resolve())
    Serving(WORKLOAD.context, device.threads, ()).save(folder)
    return folder


def spent_ms(package: Path) -> float:
    return fresh.measure(package, WORKLOAD.prompt_tokens, WORKLOAD.context).tpot_ms


def least_ms(package: Path) -> float:
    """Other work only ever adds time, and so does a file that was not read before."""
    return min(spent_ms(package) for _ in range(TURNS))


def limits_ms(made: Sequence[Made], spent: Sequence[float]) -> list[float]:
    """For each file's bytes, what a token may take: as in the fastest of the files that have as many or more."""
    spared = [ms * (1.0 if own.name in SAME_TYPES else SPARE) for own, ms in zip(made, spent, strict=True)]
    return [min(ms for other, ms in zip(made, spared, strict=True) if other.bytes >= one.bytes) for one in made]


def promised_for_spent(files: SupernetFiles, device: DeviceProfile, package: Path) -> float:
    """How many milliseconds a limit must allow for one that a token takes now, by the uniform 4-bit subnet."""
    subnet = files.space.uniform(files.spec, 4)
    package.mkdir(parents=True)
    LlamaCpp().packages.write(files, subnet, WORKLOAD, device.threads, package)
    promised = sum(item.ms for item in latency.items(files.spec, subnet, WORKLOAD, device, DECODE))
    return promised * (1 + bands(device, LlamaCpp.name)[TPOT]) / least_ms(package)


def planned(files: SupernetFiles, disk_bytes: int, limit_ms: float, device: DeviceProfile) -> Plan:
    """What loses least in a file of so many bytes that is as fast; where none is, what loses least in as many bytes."""
    quality = measured_quality(files)
    for budget in (
        Budget(10**10, tpot_ms=limit_ms, disk_bytes=disk_bytes),
        Budget(10**10, disk_bytes=disk_bytes),
    ):
        try:
            return pipeline.plan(files, LlamaCpp(), device, WORKLOAD, budget, quality)
        except BudgetError as error:
            if budget.tpot_ms is None:
                raise
            print(f"not as fast in {disk_bytes / 1e6:.1f} MB: {error}", flush=True)
    raise AssertionError


def taken_in_turns(packages: Sequence[Path]) -> Mapping[Path, tuple[float, ...]]:
    """Milliseconds a token of each package in each turn; every second turn goes backwards."""
    found: dict[Path, list[float]] = {package: [] for package in packages}
    for turn in range(TURNS):
        for package in packages if turn % 2 == 0 else packages[::-1]:
            found[package].append(spent_ms(package))
    return {package: tuple(times) for package, times in found.items()}


def ratio(row: Row, other: Row) -> float:
    """How much longer a token takes in ours of `row` than in the own file of `other`."""
    return median(ours / theirs for ours, theirs in zip(row.ms, other.own_ms, strict=True))


def claims(rows: Sequence[Row]) -> Iterator[Claim]:
    for row in rows:
        size = f"{row.own.bytes / 1e6:.1f} MB"
        slowest = max(ratio(row, other) for other in rows if other.own.bytes >= row.bytes)
        yield Claim(f"{size}: time per token / that of the fastest own file of equal or more bytes", slowest, 1.0)
        yield Claim(f"{size}: KL / that of {row.own.name}", row.loss.kl / row.own.loss.kl, row.share)
        yield Claim(f"{size}: bytes / those of {row.own.name}", row.bytes / row.own.bytes, 1.0)


def print_rows(rows: Sequence[Row]) -> None:
    cells = [
        (r.own.name, f"{r.own.bytes / 1e6:.1f}", f"{r.own.loss.kl:.4f}", f"{median(r.own_ms):.2f}",
         f"{r.bytes / 1e6:.1f}", f"{r.mean_bits:.2f}", f"{r.loss.kl:.4f}", f"{median(r.ms):.2f}", f"{ratio(r, r):.3f}")
        for r in sorted(rows, key=lambda row: row.own.bytes)
    ]  # fmt: skip
    heads = ("LLAMA.CPP'S OWN", "MB", "KL", "MS", "OURS, MB", "BITS", "KL", "MS", "MS / THEIRS")
    table(heads, cells)


if __name__ == "__main__":
    main()
