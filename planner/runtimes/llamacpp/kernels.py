"""Times of llama.cpp's quantized products on this machine: `products.py` measures them in fresh processes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from planner.runtimes.base import Progress
from planner.runtimes.child import patience
from planner.runtimes.llamacpp import fresh
from planner.runtimes.llamacpp.formats import K_TYPES, TYPES, TensorType
from planner.runtimes.llamacpp.installed import library
from planner.runtimes.llamacpp.latency import CODE_BITS
from planner.runtimes.llamacpp.serving import RUNTIME
from profiles.kernels import KernelEntry
from profiles.measure import percentile

# (in_features, out_features), from the products of 135 M to those of 8 G parameter models.
SHAPES = (
    (576, 192), (576, 576), (576, 1536), (1536, 576), (896, 128), (896, 4864), (4864, 896), (1024, 3072),
    (2048, 2048), (2048, 8192), (8192, 2048), (4096, 4096), (4096, 14336),
)  # fmt: skip
WIDEST = ((8192, 2048), (4096, 14336))  # for which K types are known well enough from the others
QUICK_SHAPES = ((576, 192), (576, 1536), (1536, 576), (896, 4864), (4864, 896), (2048, 2048))
# Heads: as wide as vocabularies, and multiplied by one row of a prompt; the last for types whose rows it alone has.
TABLES = ((576, 49152), (896, 151936), (2048, 32000))
TABLE_TYPES = {TABLES[0]: ("Q4_0", "Q8_0"), TABLES[1]: ("Q4_0", "Q8_0"), TABLES[2]: ("Q4_K", "Q6_K")}
ROWS, QUICK_ROWS = (1, 16, 128), (1, 128)
MAX_OPERATIONS = 6e9  # one measured product with many rows: a tenth of a second on one core, or ten with a slow type
LARGEST_COPY_BYTES = 2**26
MAX_COPIES = 256
SLOW_MS = 60.0  # what one product takes at most, to be measured with more rows
TRIES = 2
SECONDS = 0.03
STEADY = 0.15  # relative spread of an undisturbed timing

Case = tuple[TensorType, int, int, tuple[int, ...]]


def measure(threads: int, cache_bytes: int, quick: bool = False, progress: Progress | None = None) -> list[KernelEntry]:
    """The kernel table's entries for this runtime, on `threads` threads.

    Every product reads its weights from memory: they are repeated until they take twice `cache_bytes`, and what a turn
    leaves in the cache is read out of it before the next. Half of so many bytes would be there otherwise.
    """
    shapes, rows = (QUICK_SHAPES, QUICK_ROWS) if quick else (SHAPES, ROWS)
    kinds = [TYPES[name] for name in CODE_BITS]
    entries: list[KernelEntry] = []
    for done, shape in enumerate((*shapes, *TABLES)):
        table = shape in TABLES
        chosen = [kind for kind in kinds if not table or kind.name in TABLE_TYPES[shape]]
        chosen = [kind for kind in chosen if shape[0] % kind.block == 0 and not (kind in K_TYPES and shape in WIDEST)]
        cases = [(kind, *shape, (1,) if table else rows) for kind in chosen]
        entries += timed(cases, threads, cache_bytes, TRIES)
        if progress:
            progress(f"{shape[0]} x {shape[1]}", (done + 1) / (len(shapes) + len(TABLES)))
    return entries


def timed(
    cases: Iterable[Case], threads: int, cache_bytes: int, tries: int = 1, cold: bool = True
) -> list[KernelEntry]:
    """An entry for each number of rows of each case, measured in one fresh process; (type, K, N, rows) each. Weights
    are repeated until they take twice `cache_bytes`; `cold` says that as much else is read before each turn.

    More rows than take MAX_OPERATIONS, or than a slow type ends in SLOW_MS, are left out.
    """
    asked = []
    for kind, inputs, outputs, rows in cases:
        repeated = min(2 * cache_bytes, LARGEST_COPY_BYTES)
        copies = max(1, min(MAX_COPIES, -(-repeated // (outputs * kind.row_bytes(inputs)))))
        few = [n for n in rows if 2 * n * inputs * outputs <= MAX_OPERATIONS]
        asked.append({"kind": kind.number, "inputs": inputs, "outputs": outputs, "copies": copies, "rows": few,
                      "name": kind.name, "evicted": 2 * cache_bytes if cold else 0})  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        found = fresh.WORKER.ask(
            "products", Path(scratch), Path(scratch), patience(0), library=library(), cases=asked,
            threads=threads, tries=tries, each_s=SECONDS, steady=STEADY, slow_ms=SLOW_MS,
        )  # fmt: skip
    return [_entry(case, rows, times, threads) for case, rows, times in found]


def _entry(case: dict[str, Any], rows: int, times: Sequence[float], threads: int) -> KernelEntry:
    low, middle, high = (percentile(times, share) for share in (0.1, 0.5, 0.9))
    kind = TYPES[case["name"]]
    return KernelEntry(
        RUNTIME, CODE_BITS[kind.name], kind.block, rows, case["inputs"], case["outputs"], threads, middle, low, high,
        len(times), kind.name,
    )  # fmt: skip


def one_row_ms(threads: int, cache_bytes: int) -> float:
    """As `Products.one_row_ms`."""
    (entry,) = timed([(TYPES["Q4_0"], 1024, 3072, (1,))], threads, cache_bytes, TRIES)
    return entry.p90_ms


def slower(entries: Sequence[KernelEntry], cache_bytes: int) -> float:
    """As `TableTimer.again`: the mean of how much longer the products take."""
    ratios = []
    for entry in entries:
        case = (TYPES[entry.kernel], entry.in_features, entry.out_features, (entry.rows,))
        (now,) = timed([case], entry.threads, cache_bytes, TRIES)
        ratios.append(now.median_ms / entry.median_ms)
    return max(1.0, math.exp(sum(map(math.log, ratios)) / len(ratios)))
