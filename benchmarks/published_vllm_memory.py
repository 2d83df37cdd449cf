"""How far the memory that vLLM takes beside weights and blocks is off, on logs that others published.

    python benchmarks/published_vllm_memory.py

`published_vllm_memory.csv` has one row a run: a model's shapes, the passes and sequences that its trial pass had, and
what vLLM's log said of its peak, of the buffers of libraries, and of the pool. Not taken in: models that see images,
of experts and of linear attention, whose kernels have buffers of their own; engines from before 2025.
"""

from __future__ import annotations

import csv
from pathlib import Path

from claims import Claim, finish, table

from planner.runtimes.caches import FLOAT16, CacheType
from planner.runtimes.shapes import Shape
from planner.runtimes.vllm.blocks import BLOCK_TOKENS, blocks
from planner.runtimes.vllm.memory import OUTSIDE_BYTES, OUTSIDE_BYTES_OF_SEVERAL, peak_bytes

TABLE = Path(__file__).with_name("published_vllm_memory.csv")
GIB = 2**30
SHAPE = ("layers", "hidden", "feed_forward", "heads", "kv_heads", "head_dim", "vocabulary")
ROUNDED_GIB = 0.005  # the logs have two digits


def main() -> None:
    rows, peaks, outsides, pools = [], [], [], []
    for row in csv.DictReader(TABLE.open(encoding="utf-8")):
        spec, gpus = Shape(row["model"], *(int(row[name]) for name in SHAPE)).spec(), int(row["gpus"])
        peak = peak_bytes(spec, int(row["tokens"]), int(row["sequences"]), gpus) / GIB
        outside = (OUTSIDE_BYTES if gpus == 1 else OUTSIDE_BYTES_OF_SEVERAL) / GIB
        peaks.append(abs(peak / float(row["peak_gib"]) - 1))
        outsides.append(abs(outside - float(row["outside_gib"])))
        said = ""
        if row["pool_tokens"]:
            cache = CacheType("fp8", 1, 1) if row["cache"] == "fp8" else FLOAT16
            pool = blocks(spec, 8192, int(row["tokens"]), cache, gpus)
            tokens = float(row["pool_gib"]) * GIB / pool.block_bytes * BLOCK_TOKENS
            pools.append(abs(tokens - int(row["pool_tokens"])) * pool.block_bytes / BLOCK_TOKENS / GIB)
            said = f"{tokens:.0f} for {row['pool_tokens']}"
        rows.append((row["model"], gpus, row["cache"], f"{peak:.2f}", row["peak_gib"], f"{outside:.2f}",
                     row["outside_gib"], said))  # fmt: skip
    table(
        ("model", "GPUs", "cache", "peak, GiB", "in the log", "libraries, GiB", "in the log", "tokens of the pool"),
        rows,
    )
    finish(
        "published_vllm_memory",
        [
            Claim("peak of a pass, largest error", max(peaks), 0.03),
            Claim("buffers of libraries, largest error in GiB", max(outsides), 0.25),
            Claim(
                "tokens of the pool, largest error in GiB beyond what two digits round", max(pools) - ROUNDED_GIB, 0.0
            ),
        ],
    )


if __name__ == "__main__":
    main()
