"""What one supernet loses as GGUF files, in llama.cpp, beside llama.cpp's own files of the same bytes.

    python benchmarks/gguf_files.py --text ../shared/text --supernet FOLDER [--keep FOLDER]

The supernet is of the embedded default model, on the symmetric grid (`bitfleet train --grid sym`). For each size the
plan is that of `bitfleet plan --runtime llamacpp --disk SIZE`; its file is read by llama.cpp, and the KL is per token
from the full model on the first 16 windows of 512 tokens of eval.txt. Beside it stands what the subnet itself loses
there in PyTorch: llama.cpp's rounding of activations adds the rest. Rivals' sizes and KL are of llama.cpp's files with
an importance matrix, measured on the same windows (docs/log.md).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from claims import Claim, finish, table
from torch import Tensor

from commands.measuring import measured_quality
from planner import pipeline
from planner.plan import Plan
from planner.request import Budget, Workload
from planner.runtimes.llamacpp.runtime import LlamaCpp
from profiles.catalog import load
from supernet.checkpoint import SupernetFiles, open_supernet
from supernet.evaluate import Reference, evaluate
from supernet.loading import DEFAULT_MODEL, load_model
from supernet.text import read_windows

DEVICE = "desktop-ryzen-5600-16gb"  # any: only the file's bytes are limited
CONTEXT, TOGETHER = 2048, 4
PACKAGE = 0.004  # nats that a package may be from its subnet: llama.cpp's own noise is 0.003


@dataclass(frozen=True)
class Rival:
    """A file of llama.cpp's own: its type, bytes and KL, and the share of it that is aimed at in as many bytes."""

    name: str
    bytes: float
    kl: float
    share: float


RIVALS = (
    Rival("Q4_K_M, imatrix", 105.5e6, 0.033, 1.0),
    Rival("Q4_0, imatrix", 91.9e6, 0.190, 0.5),
    Rival("IQ3_M, imatrix", 90.2e6, 0.139, 0.5),
    Rival("IQ2_M, imatrix", 85.6e6, 0.342, 0.5),
    Rival("Q2_0", 62.0e6, 11.7, 0.8 / 11.7),  # last: llama.cpp has no kernel for it on x86
)


@dataclass(frozen=True)
class Row:
    rival: str
    rival_bytes: float
    rival_kl: float
    bytes: int
    mean_bits: float
    subnet_kl: float
    package_kl: float  # from the full model
    apart: float  # from the subnet to the package


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--supernet", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--keep", type=Path, help="write the files here")
    given = parser.parse_args()
    files = open_supernet(given.supernet)
    plans = [planned(files, round(rival.bytes)) for rival in RIVALS]
    full = load_model(DEFAULT_MODEL)
    reference = Reference.of(full.model, read_windows(str(given.text / "eval.txt"), full.tokenizer, given.windows, 512))
    del full
    supernet = files.load()
    subnets = [quality.kl for quality in evaluate(supernet, [plan.subnet for plan in plans], reference)]
    del supernet
    print("KL of the subnets:", *(f"{kl:.4f}" for kl in subnets), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        rows = [
            row_of(files, plan, rival, kl, reference, folder / f"{rival.bytes / 1e6:.1f}MB")
            for plan, rival, kl in zip(plans, RIVALS, subnets, strict=True)
        ]
    print_rows(rows)
    finish(__file__, list(claims(rows)), rows=[asdict(row) for row in rows], recipe=files.info["recipe"])


def planned(files: SupernetFiles, disk_bytes: int) -> Plan:
    """What loses least in a file of so many bytes."""
    budget = Budget(10**10, disk_bytes=disk_bytes)
    device, workload = load(DEVICE), Workload(CONTEXT)
    return pipeline.plan(files, LlamaCpp(), device, workload, budget, measured_quality(files))


def row_of(files: SupernetFiles, plan: Plan, rival: Rival, subnet_kl: float, reference: Reference, folder: Path) -> Row:
    runtime = LlamaCpp()
    folder.mkdir(parents=True)
    runtime.packages.write(files, plan.subnet, plan.workload, None, folder)
    model = files.subnet_model(plan.subnet)
    from_full, apart = 0.0, 0.0
    for start in range(0, len(reference.windows), TOGETHER):
        windows = reference.windows[start : start + TOGETHER]
        said = runtime.engine().speaker(folder).logits(windows.numpy().astype(np.int64))
        for number, window in enumerate(windows):
            theirs = torch.from_numpy(said[number]).double().log_softmax(-1)
            from_full += divergence(reference.log_probs(start + number, slice(0, len(window))).double(), theirs)
            with torch.no_grad():
                ours = model(window[None]).logits[0].double().log_softmax(-1)
            apart += divergence(ours, theirs)
    tokens = reference.windows.numel()
    size = sum((folder / name).stat().st_size for name in runtime.packages.weight_files)
    bits = plan.chosen.mean_bits
    row = Row(rival.name, rival.bytes, rival.kl, size, bits, subnet_kl, from_full / tokens, apart / tokens)
    print(row, flush=True)
    return row


def divergence(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.exp() * (ours - theirs)).sum())


def claims(rows: list[Row]) -> Iterator[Claim]:
    for row, rival in zip(rows, RIVALS, strict=True):
        yield Claim(f"{rival.bytes / 1e6:.1f} MB: KL / that of {rival.name}", row.package_kl / rival.kl, rival.share)
        yield Claim(f"{rival.bytes / 1e6:.1f} MB: bytes / the rival's", row.bytes / rival.bytes, 1.0)
    yield Claim("KL from a subnet to its package in llama.cpp, worst", max(row.apart for row in rows), PACKAGE)


def print_rows(rows: list[Row]) -> None:
    cells = [
        (r.rival, f"{r.rival_bytes / 1e6:.1f}", f"{r.rival_kl:.3f}", f"{r.bytes / 1e6:.1f}", f"{r.mean_bits:.2f}",
         f"{r.subnet_kl:.4f}", f"{r.package_kl:.4f}", f"{r.apart:.4f}")
        for r in rows
    ]  # fmt: skip
    table(("LLAMA.CPP'S OWN", "MB", "KL", "OURS, MB", "BITS", "KL, SUBNET", "KL, FILE", "APART"), cells)


if __name__ == "__main__":
    main()
