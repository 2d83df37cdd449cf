"""What a forward pass takes beside its products, in a runtime that reads prompts in chunks and was calibrated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.request import Workload
from planner.runtimes.base import DECODE, PREFILL, LatencyItem
from planner.runtimes.caches import CacheType
from planner.runtimes.calibrated import LAYER, STEP, VALUE, Calibrated, timed_item
from profiles.device import DeviceProfile
from supernet.spec import ModelSpec

DECODED_TOKENS = 64  # time per token is a mean over so many


def in_chunks(prompt_tokens: int, size: int) -> list[tuple[int, int]]:
    """(rows, tokens read by then) of each pass that reads one prompt in pieces of at most `size` tokens."""
    starts = range(0, prompt_tokens, size)
    return [(min(size, prompt_tokens - start), min(start + size, prompt_tokens)) for start in starts]


def cached_tokens(workload: Workload) -> int:
    """Tokens in the cache of each sequence, in the middle of what is decoded."""
    return min(workload.context, workload.prompt_tokens + DECODED_TOKENS // 2)


def evenly_compared(workload: Workload, heads: int, threads: int) -> float:
    """Cached tokens of all sequences that each query head is compared with, one token at a time, however many threads
    share that."""
    return float(workload.batch * cached_tokens(workload))


def layer_values(spec: ModelSpec, widest: int) -> int:
    """Values a token that one layer computes: residuals and feed-forward (whose matrices make `widest`) three times
    each, and the projections. Of a layer that keeps all its channels, as one may: what pruning saves is left out."""
    attention = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    return 3 * widest + 3 * spec.hidden_size + attention


@dataclass(frozen=True)
class Passes:
    """How a runtime goes through tokens.

    `chunks` are (rows, tokens a sequence has by then) of each pass that reads the prompts of a workload, whose keys and
    values are kept as `cache_of` says; `compared` (workload, query heads, threads) is for how many cached tokens a head
    takes time for one token, as `evenly_compared` or more where threads wait for each other; `layer_values` as above;
    `step` is what the costs of a pass itself are called.
    """

    known: Calibrated
    chunks: Callable[[Workload], list[tuple[int, int]]]
    cache_of: Callable[[Workload], CacheType]
    compared: Callable[[Workload, int, int], float]
    layer_values: Callable[[ModelSpec], int]
    step: str

    def scores(self, workload: Workload) -> int:
        """How many pairs of tokens attention compares while it reads the prompts."""
        return sum(rows * there for rows, there in self.chunks(workload))

    def around(self, spec: ModelSpec, workload: Workload, device: DeviceProfile, phase: str) -> tuple[LatencyItem, ...]:
        """Everything but the products. ValueError for another phase than PREFILL and DECODE."""
        if phase not in (PREFILL, DECODE):
            raise ValueError(f"phase must be {PREFILL} or {DECODE}, got {phase!r}")
        width = spec.num_heads * spec.head_dim * spec.num_layers
        if phase == PREFILL:
            passes, tokens = len(self.chunks(workload)), workload.batch * workload.prompt_tokens
            scores: float = self.scores(workload) * width
        else:
            passes, tokens = 1, workload.batch
            scores = self.compared(workload, spec.num_heads, device.threads or 1) * width
        values = tokens * self.layer_values(spec) * spec.num_layers
        score = self.known.score_ns(device, phase, self.cache_of(workload))
        return (
            timed_item("attention", *score, scores / 1e6),
            self.known.item(device, "norms, activations and residuals", VALUE, values / 1e6),
            self.known.item(device, "graph, for each layer", LAYER, float(passes * spec.num_layers)),
            self.known.item(device, self.step, STEP, float(passes)),
        )
