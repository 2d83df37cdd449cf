"""For how many cached tokens attention takes time: by hand, and against threads that take pieces in turns."""

from __future__ import annotations

import heapq

import pytest

from planner.request import Workload
from planner.runtimes.llamacpp.attention import SPLIT_CELLS, TURNS, busiest, compared
from planner.runtimes.llamacpp.serving import padded
from planner.runtimes.passes import evenly_compared


@pytest.mark.parametrize(("prompt", "threads", "tokens"), [
    (100, 1, 132), (300, 1, 332), (1000, 1, 1032),  # one thread waits for nobody
    (100, 2, 132), (224, 2, 256), (225, 2, 512), (480, 2, 512), (481, 2, 768), (1000, 2, 1280),
    (300, 3, 3 * 171), (300, 8, 512), (300, 64, 512),
])  # fmt: skip
def test_a_token_waits_for_the_thread_with_the_fullest_cells(prompt: int, threads: int, tokens: int) -> None:
    """Eight heads are shared evenly among one, two, and eight threads."""
    if padded(prompt + 32) >= SPLIT_CELLS or 8 % threads == 0:
        assert compared(Workload(4096, 1, prompt), 8, threads) == tokens


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("heads", [1, 4, 9, 14, 32, 71])
def test_threads_never_compare_less_than_their_share(heads: int, threads: int) -> None:
    for batch, cache in ((1, None), (3, None), (1, "q8_0")):
        for prompt in (1, 128, 250, 1000, 4000):
            workload = Workload(4096, batch, prompt, kv_cache=cache)
            even, found = evenly_compared(workload, heads, threads), compared(workload, heads, threads)
            assert even <= found <= even * threads
            if threads == 1:
                assert found == even


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("rows", [1, 4, 9, 14, 32, 71, 1024])
def test_the_busiest_thread_is_the_last_one_to_end(rows: int, threads: int) -> None:
    """Whoever is free takes the next piece, as the library's threads do."""
    piece = max(1, -(-rows // (TURNS * threads)))
    if -(-rows // piece) < threads:
        piece = -(-rows // threads)
    ends = [0] * threads
    for start in range(0, rows, piece):
        heapq.heapreplace(ends, ends[0] + min(piece, rows - start))
    assert busiest(rows, threads) == max(ends)


def test_several_sequences_and_rounded_caches_are_not_split() -> None:
    for workload in (Workload(2048, 2, 300), Workload(2048, 1, 300, kv_cache="q8_0")):
        assert compared(workload, 8, 2) == evenly_compared(workload, 8, 2)
    assert compared(Workload(300, 1, 299), 9, 1) == 300  # no more than the context holds
