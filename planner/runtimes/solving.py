"""What a runtime costs beyond its products, from what small models took that differ in one thing each.

Two narrow ones differ in depth alone. Their products are timed apart, in cache as they are there, and subtracted; what
is left per layer, per step and per value is what every model pays. What a token's attention takes comes from a wide
model: as in a real one, its weights leave none of the KV cache in the processor's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from planner.request import Workload
from planner.runtimes.base import DECODE, PREFILL
from planner.runtimes.caches import CacheType
from planner.runtimes.calibrated import LAYER, SCORE_DECODE, SCORE_PREFILL, STEP, VALUE, factor_of
from planner.runtimes.child import Measurement
from planner.runtimes.passes import Passes
from planner.runtimes.shapes import Shape

SHALLOW = Shape("shallow", 4, 256, 768, 4, 2, 64, 4096)
DEEP = replace(SHALLOW, name="deep", layers=16)
SHORT, MIDDLE, LONG, CONTEXT = 16, 256, 1000, 2048
_HEADS = DEEP.heads * DEEP.head_dim  # values that all heads of a layer compare two tokens by


def prompted(prompt: int) -> Workload:
    return Workload(CONTEXT, 1, prompt)


@dataclass(frozen=True)
class Times:
    """Milliseconds: per token of both narrow models and the wide one, after the SHORT prompt and `long` after the LONG
    one; to the first token of the deep one by prompt; and of a layer's products by rows and the head's for one."""

    shallow_tpot: float
    deep_tpot: float
    deep_long_tpot: float
    wide_tpot: float
    wide_long_tpot: float
    ttft: Mapping[int, float]
    products: Mapping[int, float]
    head: float


@dataclass(frozen=True)
class Solver:
    """For a runtime that goes through tokens as `passes` says. The head is computed in each pass of a prompt, or else
    in its last one alone; `picking_ns` is what picking a token takes for each of the vocabulary."""

    passes: Passes
    head_each_pass: bool
    picking_ns: float = 0.0

    def times(self, times: Times, wide: Shape, threads: int) -> dict[str, float]:
        """The constants by name, of so many threads; times that noise has made negative become 0."""
        per_layer = (times.deep_tpot - times.shallow_tpot) / (DEEP.layers - SHALLOW.layers) - times.products[1]
        picking = self.picking_ns * DEEP.vocabulary / 1e6
        step = times.deep_tpot - DEEP.layers * (per_layer + times.products[1]) - times.head - picking
        decode = self.score_ms(wide, times.wide_tpot, times.wide_long_tpot, threads)
        start = self.passes.compared(prompted(SHORT), DEEP.heads, threads)
        every, last = (times.head, 0.0) if self.head_each_pass else (0.0, times.head)

        def left(prompt: int) -> float:
            """What a layer takes of a prompt beyond its products: value * tokens + score * scores."""
            passes = self.passes.chunks(prompted(prompt))
            layer = (times.ttft[prompt] - len(passes) * (step + every) - last - picking) / DEEP.layers
            return max(0.0, layer - sum(times.products[rows] + per_layer for rows, _ in passes))

        scores = {prompt: self.passes.scores(prompted(prompt)) for prompt in (MIDDLE, LONG)}
        growth = left(LONG) / LONG - left(MIDDLE) / MIDDLE
        score = max(0.0, growth / (scores[LONG] / LONG - scores[MIDDLE] / MIDDLE))
        value = max(0.0, (left(LONG) - score * scores[LONG]) / LONG)
        decode_start = decode * start * _HEADS
        return {
            STEP: max(0.0, step),
            LAYER: max(0.0, per_layer - decode_start - value),
            VALUE: 1e6 * value / self.passes.layer_values(DEEP.spec()),
            SCORE_DECODE: max(0.0, 1e6 * decode),
            SCORE_PREFILL: 1e6 * score / _HEADS,
        }

    def score_ms(self, shape: Shape, short_ms: float, long_ms: float, threads: int) -> float:
        """Of one value of a head against one token, from a token's times after the SHORT prompt and the LONG one."""
        short, long = (self.passes.compared(prompted(prompt), shape.heads, threads) for prompt in (SHORT, LONG))
        return (long_ms - short_ms) / (shape.layers * (long - short) * shape.heads * shape.head_dim)

    def cache(
        self, cache: CacheType, taken: Measurement, times: Times, prefill_ns: float, threads: int
    ) -> dict[str, float]:
        """How many times as long a score takes from a cache of this type, from what the deep model with one has `taken`
        for the LONG prompt; without, a score within a prompt takes `prefill_ns`. 1 where the plain way was too short to
        be seen."""
        plain, rounded = prompted(LONG), replace(prompted(LONG), kv_cache=cache.name)
        before, now = (self.passes.compared(one, DEEP.heads, threads) for one in (plain, rounded))
        read = float(self.passes.scores(plain))
        decode = self.score_ms(DEEP, times.deep_tpot, times.deep_long_tpot, threads)
        more = {DECODE: taken.tpot_ms - times.deep_long_tpot, PREFILL: taken.ttft_ms - times.ttft[LONG]}
        return {
            factor_of(cache, DECODE): _factor(decode, before, now, more[DECODE]),
            factor_of(cache, PREFILL): _factor(prefill_ns / 1e6, read, read, more[PREFILL]),
        }


def _factor(score_ms: float, before: float, now: float, more_ms: float) -> float:
    """How many times as long each of the scores takes `now`, if so many `before` took `more_ms` less."""
    each = score_ms * _HEADS * DEEP.layers
    return max(0.0, (each * before + more_ms) / (each * now)) if each > 0 else 1.0


def by_layers(left: Mapping[Shape, float]) -> tuple[float, dict[Shape, float]]:
    """Bytes that are kept of each layer, from those `left` of models by their shapes; and what is left without them."""
    layer = max(0.0, (left[DEEP] - left[SHALLOW]) / (DEEP.layers - SHALLOW.layers))
    return layer, {shape: rest - layer * shape.layers for shape, rest in left.items()}


def peak_spread(processes: Mapping[Shape, Sequence[Measurement]], base: float) -> float:
    """Half of what the peaks of one model's processes differ by, as a share of the `base` of a process."""
    peaks = [[one.peak_bytes for one in some] for some in processes.values()]
    return max((max(some) - min(some)) / 2 for some in peaks) / base


def middle(processes: Sequence[Measurement]) -> Measurement:
    """The one of the median peak."""
    return sorted(processes, key=lambda one: one.peak_bytes)[len(processes) // 2]
