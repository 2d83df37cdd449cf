"""How far the estimates of MLX and vLLM are off, on decode speeds of one sequence that others published.

    python benchmarks/published_folders.py          judge: each device by shares fitted to all others
    python benchmarks/published_folders.py --fit    print the numbers that profiles/folder_shares.py keeps

`published_folders.csv` has one row a figure. Bytes are computed from the published config of the model and the layout
of its type: scales and zeros of groups of 64 in MLX (32 where the name says so), of 128 in vLLM, whose embedding and
head are float16. A token reads no embedding that is no head; it does read the cache, half of what is generated after
the prompt.

vLLM's figures from before its engine was written anew are all of one card: they tell the shares of bandwidth by kind of
weight, and how much longer layers took, but not how far an estimate is off, so bands and verdicts are of the others.

Not taken in: models of experts, of linear attention and of fp8 or fp4 types; speculation; several cards; runs without
CUDA graphs (`--enforce-eager`); means over requests whose prompts are in the time, but for three figures of an H100,
where 256 tokens of prompt are 3 to 5 % of it; a page whose 70 billion weights of 4 bits fit 17 GB; a table of an M4 Max
that is half as fast in every row as three others; figures "about" something; Gemma, of which there are no packages for
MLX.
"""

from __future__ import annotations

import argparse
import csv
import math
import pprint
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from claims import Claim, finish, table
from published import IN_BAND, Fit, Names, Row, error, half_bands, left_out

from profiles.folder_shares import FLOAT, KINDS, PACKED, RUNTIMES, VLLM

TABLE = Path(__file__).with_name("published_folders.csv")
FOLDERS = Names(RUNTIMES, KINDS)
ENGINE = "2025-02"  # vLLM's engine was written anew about then: layers took longer before
USUAL = 0.75  # of the bandwidth, for everything: what the estimate is compared with


@dataclass(frozen=True)
class FolderRow(Row):
    cache_bytes: int

    @property
    def group(self) -> str:
        return FLOAT if self.type == "bf16" else PACKED

    @property
    def read_bytes(self) -> int:
        return self.file_bytes - self.embedding_bytes + self.cache_bytes

    @property
    def age(self) -> int:
        return int(self.backend == VLLM and self.date < ENGINE)


def read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            FolderRow(
                r["device"], r["kind"], None, float(r["bandwidth_gb_per_s"]) * 1e9, r["model"],
                float(r["parameters_b"]), int(r["layers"]), r["type"], int(r["file_bytes"]),
                int(r["embedding_bytes"]), r["date"], float(r["tokens_per_s"]), int(r["cache_bytes"]),
            )
            for r in csv.DictReader(file)
        ]  # fmt: skip


def judge(rows: Sequence[Row]) -> tuple[list[Row], list[float]]:
    """The rows that are judged, and what is left of each after a fit to all other devices."""
    found = [(row, log) for row, log in zip(rows, left_out(rows, FOLDERS), strict=True) if row.age == 0]
    return [row for row, _ in found], [log for _, log in found]


def middle_of(logs: Sequence[float]) -> float:
    """The median error of estimated tokens a second."""
    return float(np.median([error(log) for log in logs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="print the numbers that profiles/folder_shares.py keeps")
    rows = read(TABLE)
    judged, logs = judge(rows)
    if parser.parse_args().fit:
        fit = Fit(rows, FOLDERS)
        found = fit.shares()
        pprint.pp(
            {
                "share": {key: round(value, 3) for key, value in found.share.items()},
                "layer_ms": {b: round(ms, 4) for b, ms in found.layer_ms.items()},
                "half": {b: round(half, 3) for b, half in half_bands(judged, logs, names=FOLDERS).items()},
                "by age": np.exp(fit._split(fit.x)[2]).round(2).tolist(),
                "figures": {b: sum(r.backend == b for r in rows) for b in RUNTIMES},
            }
        )
        return
    rows = judged
    halves = {device: half_bands(rows, logs, device, FOLDERS) for device in {r.device for r in rows}}
    inside = [abs(log) <= halves[r.device][r.backend] for log, r in zip(logs, rows, strict=True)]
    ratios = [math.exp(2 * halves[r.device][r.backend]) for r in rows]
    lines = []
    for name in ("all", *RUNTIMES):
        mine = [i for i, r in enumerate(rows) if name in ("all", r.backend)]
        devices = len({(rows[i].device, rows[i].backend) for i in mine})
        middle = middle_of([logs[i] for i in mine])
        share = float(np.mean([inside[i] for i in mine]))
        lines.append((name, devices, len(mine), f"{middle:.1%}", f"{share:.0%}", f"{max(ratios[i] for i in mine):.2f}"))
    table(("left out", "devices", "figures", "median error", "in band", "ends"), lines)
    plain = [error(r.log_ms - math.log(1e3 * r.read_bytes / (USUAL * r.bandwidth))) for r in rows]
    print(f"beside three quarters of the bandwidth for all: median error {100 * np.median(plain):.1f} %\n")
    finish(
        __file__,
        [
            Claim("median error of the middle, devices left out", middle_of(logs), 0.20),
            Claim("share outside a band of 8 of 10", 1 - float(np.mean(inside)), 1.25 * (1 - IN_BAND)),
            Claim("widest ratio of a band's ends", max(ratios), 2.5),
            Claim("its error over that of three quarters for all", middle_of(logs) / float(np.median(plain)), 0.8),
        ],
        figures=len(rows),
        in_band=float(np.mean(inside)),
    )


if __name__ == "__main__":
    main()
