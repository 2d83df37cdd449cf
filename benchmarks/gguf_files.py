"""What one supernet loses as GGUF files, in llama.cpp, beside llama.cpp's own files of the same bytes.

    npm install --prefix ~/.cache/bitfleet @node-llama-cpp/linux-x64@3.22.1
    python benchmarks/gguf_files.py --text ../shared/text --supernet FOLDER [--model FOLDER] [--against TYPE=SHARE ...]

The supernet is of the embedded default model, on the symmetric grid (`bitfleet train --grid sym`). llama.cpp's own
files are made here, with an importance matrix of train.txt, as gguf_rivals.py makes them (`--made` takes the folder
that it kept). For each, the plan is that of `bitfleet plan --runtime llamacpp --disk ITS-BYTES`. Both files are read by
llama.cpp in this run, and KL is per token from the full model on the first 16 windows of 512 tokens of eval.txt. Beside
it stands what the subnet itself loses there in PyTorch: llama.cpp's rounding of activations adds the rest. SHARE is
what ours may lose of what a file of TYPE loses.

For a supernet of the reference model (reference_model.py) on a grid of K types:

    python benchmarks/gguf_files.py --text ../shared/text --supernet FOLDER --model ~/.cache/bitfleet/reference-model
        --against Q2_K=0.6 Q3_K_M=0.7 Q4_K_M=0.9
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from claims import Claim, finish, table
from gguf_losses import Loss, loss_of
from gguf_own import PACKAGE, Own
from gguf_own import VERSION as QUANTIZER
from gguf_rivals import Made, add_arguments, scene_in

from commands.measuring import measured_quality
from planner import pipeline
from planner.plan import Plan
from planner.request import Budget, Workload
from planner.runtimes.llamacpp.runtime import LlamaCpp
from planner.runtimes.llamacpp.serving import LIBRARY, VERSION, WEIGHTS
from profiles.catalog import load
from supernet.checkpoint import SupernetFiles, open_supernet
from supernet.loading import model_name
from supernet.reference import Reference

DEVICE = "desktop-ryzen-5600-16gb"  # any: only the file's bytes are limited
CONTEXT = 2048
PACKAGE_KL = 0.004  # nats that a package may be from its subnet: llama.cpp's own noise is 0.003
# What ours may lose of what llama.cpp's own file of as many bytes loses: half of a preset's up to 92 MB, and never more
# than a file whose embedding has as few bits as its matrices, which no preset makes of a tied one.
AGAINST = ("Q2_0=0.5", "IQ4_NL:Q4_0=1", "IQ2_M=0.5", "IQ3_M=0.5", "Q4_0=0.5", "Q4_K_M=1")
SMALLEST, SMALLEST_KL = "Q2_0", 0.8  # of the smallest file, in nats: half of its rival's says nothing


@dataclass(frozen=True)
class Row:
    """Ours beside theirs, of at most as many bytes."""

    own: Made
    share: float
    bytes: int
    mean_bits: float
    loss: Loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_beside(parser, "--against", AGAINST)
    given = parser.parse_args()
    files = open_supernet(given.supernet)
    with scene_in(given, given.made) as (scene, folder):
        rows = []
        for own, share in map(against, given.against):
            made = scene.made(own, folder / "own" / own.folder)
            rows.append(row_of(files, made, share, scene.reference, folder / "ours" / own.folder))
    print_rows(rows)
    finish(
        __file__, list(claims(rows)), model=model_name(given.model), rows=[asdict(row) for row in rows],
        recipe=files.info["recipe"], quantizer=f"{PACKAGE} {QUANTIZER}", run_by=f"{LIBRARY} {VERSION}",
    )  # fmt: skip


def add_beside(parser: argparse.ArgumentParser, flag: str, default: Sequence[str]) -> None:
    """What is asked where a supernet stands beside files of llama.cpp's own, which `flag` names."""
    add_arguments(parser)
    parser.add_argument("--supernet", type=Path, required=True)
    parser.add_argument(flag, nargs="+", default=list(default), help="TYPE[:EMBEDDING[:HEAD]]=SHARE of its KL")
    parser.add_argument("--made", type=Path, help="take their files from here, where gguf_rivals.py --keep wrote them")


def against(text: str) -> tuple[Own, float]:
    kind, _, share = text.rpartition("=")
    return Own.parse(kind), float(share)


def planned(files: SupernetFiles, disk_bytes: int) -> Plan:
    """What loses least in a file of so many bytes."""
    budget = Budget(10**10, disk_bytes=disk_bytes)
    device, workload = load(DEVICE), Workload(CONTEXT)
    return pipeline.plan(files, LlamaCpp(), device, workload, budget, measured_quality(files))


def row_of(files: SupernetFiles, made: Made, share: float, reference: Reference, folder: Path) -> Row:
    plan = planned(files, made.bytes)
    folder.mkdir(parents=True)
    LlamaCpp().packages.write(files, plan.subnet, plan.workload, None, folder)
    loss = loss_of(folder, reference, files.subnet_model(plan.subnet))
    size = (folder / WEIGHTS).stat().st_size
    row = Row(made, share, size, plan.chosen.mean_bits, loss)
    print(f"  ours: {row.bytes / 1e6:.1f} MB, KL {loss.kl:.4f}, of the subnet {loss.subnet_kl:.4f}", flush=True)
    return row


def claims(rows: list[Row]) -> Iterator[Claim]:
    for row in rows:
        size = f"{row.own.bytes / 1e6:.1f} MB"
        yield Claim(f"{size}: KL / that of {row.own.name}", row.loss.kl / row.own.loss.kl, row.share)
        yield Claim(f"{size}: bytes / those of {row.own.name}", row.bytes / row.own.bytes, 1.0)
        if row.own.name == SMALLEST:
            yield Claim(f"{size}: KL", row.loss.kl, SMALLEST_KL)
    apart = [row.loss.apart for row in rows if row.loss.apart is not None]
    yield Claim("KL from a subnet to its package in llama.cpp, worst", max(apart), PACKAGE_KL)


def print_rows(rows: list[Row]) -> None:
    cells = [
        (r.own.name, f"{r.own.bytes / 1e6:.1f}", f"{r.own.loss.kl:.4f}", f"{r.bytes / 1e6:.1f}", f"{r.mean_bits:.2f}",
         f"{r.loss.subnet_kl:.4f}", f"{r.loss.kl:.4f}", f"{r.loss.apart:.4f}", f"{r.loss.kl / r.own.loss.kl:.2f}")
        for r in sorted(rows, key=lambda row: row.own.bytes)
    ]  # fmt: skip
    table(("LLAMA.CPP'S OWN", "MB", "KL", "OURS, MB", "BITS", "KL, SUBNET", "KL, FILE", "APART", "KL / THEIRS"), cells)


if __name__ == "__main__":
    main()
