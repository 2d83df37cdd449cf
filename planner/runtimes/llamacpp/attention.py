"""How many tokens of its cache llama.cpp's attention compares a query head with, one token at a time, on a CPU.

What it reads of a cache is `padded`. As of SPLIT_CELLS of one sequence's floats the threads share the cells, padding
included: the first has as many as any and most of them hold tokens, the last may have nothing but padding, which takes
no time. So a token's time is a stair over the length of the cache. Otherwise threads take the query heads in turns,
each with all tokens. As the pinned build's `ggml_compute_forward_flash_attn_ext_f16` does; measured in docs/log.md.
"""

from __future__ import annotations

from planner.request import Workload
from planner.runtimes.llamacpp.serving import cache_of, padded
from planner.runtimes.passes import cached_tokens

SPLIT_CELLS = 512
TURNS = 4  # at least so many pieces of work a thread


def compared(workload: Workload, heads: int, threads: int) -> float:
    """As `Passes` asks: what the busiest of the threads compares, times their number."""
    tokens = cached_tokens(workload)
    if workload.batch == 1 and padded(tokens) >= SPLIT_CELLS and not cache_of(workload).rounds:
        return float(threads * min(tokens, -(-padded(tokens) // threads)))
    return threads * tokens * busiest(heads * workload.batch, threads) / heads


def busiest(rows: int, threads: int) -> int:
    """How many of so many equal rows the busiest thread computes: they take pieces in turns, the last may be short."""
    piece = -(-rows // (TURNS * threads))
    if -(-rows // piece) < threads:
        piece = -(-rows // threads)
    pieces = -(-rows // piece)
    turns = -(-pieces // threads)
    has_the_last_alone = pieces % threads == 1 or threads == 1
    return turns * piece - (pieces * piece - rows if has_the_last_alone else 0)
