"""What vLLM takes on a GPU whose kernels others measured (`profiles.gpu_tables`).

A pass is its products, attention in each layer, what several GPUs add up, and what no table has: norms, rotations,
activations, sampling, and the host that gives out the work. Products of float weights, attention and sums are
looked up; products of packed weights are modelled from the same GPU's floats (`profiles.gpu_tables.products`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.request import Workload
from planner.runtimes.base import DECODE, ESTIMATE, MODELLED, PREFILL, LatencyItem, weakest
from planner.runtimes.by_bandwidth import VALUE_BYTES
from planner.runtimes.passes import cached_tokens, in_chunks, layer_values
from planner.runtimes.vllm import split
from planner.runtimes.vllm.pricing import SUMS, VllmPricing
from profiles.folder_shares import FLOAT, UNKNOWN, Reading
from profiles.gpu_tables.attention import BFLOAT16, FP8, Heads
from profiles.gpu_tables.products import PackedKernel
from profiles.gpu_tables.tables import GpuTables, tables_of
from profiles.kernels import KernelEstimate
from profiles.roofline import SPREAD
from supernet.space import Subnet
from supernet.spec import EMBEDDING, HEAD, ModelSpec, UnitSpec

# What TensorRT-LLM's products of packed weights take to start, and how reading and multiplying overlap there; what a
# pass takes beside its kernels, of passes that others timed. `benchmarks/gpu_tables.py --fit` prints them. Unlike
# TensorRT-LLM's, vLLM's kernels divide a product along its inputs, too: no step of it is waited for.
PACKED_KERNEL = PackedKernel(start_ms=0.009, step_ms=0.0, overlap=2.0)
STEP_MS = 1.5
BESIDE_SPREAD = 0.5
UNKNOWN_SPREAD = math.sinh(UNKNOWN)  # of weights whose kernels nobody published a speed of
MOVED = 2  # times a value beside products is moved: read and written


@dataclass(frozen=True)
class Pass:
    """`rows` go through all layers, of which `last` have their next token computed."""

    rows: int
    last: int


def passes(workload: Workload, phase: str, chunk_tokens: int) -> list[Pass]:
    """Those of a phase. ValueError for another than PREFILL and DECODE."""
    if phase == DECODE:
        return [Pass(workload.batch, workload.batch)]
    if phase != PREFILL:
        raise ValueError(f"phase must be {PREFILL} or {DECODE}, got {phase!r}")
    chunks = [rows for rows, _ in in_chunks(workload.batch * workload.prompt_tokens, chunk_tokens)]
    return [*(Pass(rows, 0) for rows in chunks[:-1]), Pass(chunks[-1], workload.batch)]


@dataclass(frozen=True)
class TablePricing(VllmPricing):
    """Times by the tables of the device; memory as without them."""

    tables: GpuTables

    def latency(self, subnet: Subnet, phase: str) -> tuple[LatencyItem, ...]:
        """Each GPU does its part at the same time, and waits for the sums."""
        went, spec = passes(self.workload, phase, self.usual.chunk_tokens), self._part
        units = (self._unit(unit, self.holding.reading(unit, subnet[unit.name]), went) for unit in spec.units)
        return (*units, self._attention(phase), *self._sums(went), self._beside(went))

    def rests_on(self) -> str:
        guessed = "" if self._measured_sums else f"; what sums over {self.workload.gpus} GPUs take is a guess"
        return (
            f"times rest on what others measured, {self.tables.said()}; products of packed weights are modelled from "
            f"those of floats; {self.unknown}{guessed}"
        )

    @cached_property
    def _part(self) -> ModelSpec:
        """What each GPU has of the model."""
        return split.divided(self.spec, self.workload.gpus)

    @property
    def _measured_sums(self) -> bool:
        reduce = self.tables.reduce
        return self.workload.gpus == 1 or (reduce is not None and self.workload.gpus in reduce.counts)

    def _sums(self, went: Sequence[Pass]) -> Iterator[LatencyItem]:
        """What the GPUs add up: each layer's outputs, and the embedding."""
        spec, gpus, reduce = self.spec, self.workload.gpus, self.tables.reduce
        if gpus == 1:
            return
        if reduce is None or gpus not in reduce.counts:
            ms = split.sums_ms(spec, self.device, sum(one.rows for one in went), len(went), gpus)
            yield LatencyItem(SUMS, ms, ESTIMATE, None, SPREAD)
            return
        each = [reduce.of(gpus, VALUE_BYTES * one.rows * spec.hidden_size) for one in went]
        count = split.SUMS_OF_LAYER * spec.num_layers + 1
        yield summed(SUMS, [(count, estimate) for estimate in each])

    def _unit(self, unit: UnitSpec, reading: Reading, went: Iterable[Pass]) -> LatencyItem:
        found = [estimate for one in went for estimate in self._products(unit, reading, one)]
        return summed(unit.name, [(1, estimate) for estimate in found], unit.name)

    def _products(self, unit: UnitSpec, reading: Reading, one: Pass) -> Iterator[KernelEstimate]:
        """Of one pass. What is read as a table costs its rows; linears that read the same input are one product."""
        products = self.tables.products
        if unit.role == EMBEDDING and not self.spec.tied:
            looked_up = VALUE_BYTES * one.rows * self.spec.hidden_size
            yield KernelEstimate(products.reading_ms(looked_up), SPREAD, MODELLED)
            return
        rows = one.last if unit.role in (EMBEDDING, HEAD) else one.rows
        if not rows:
            return
        if unit.chosen is not None:
            yield from self._experts(unit, reading, rows)
            return
        for inputs, outputs in unit.products.items():
            if reading.kind == FLOAT:
                yield products.floats(rows, outputs, inputs)
                continue
            size = reading.size * outputs * inputs / unit.weights
            found = products.packed(rows, outputs, inputs, size, PACKED_KERNEL)
            if reading.known:
                yield found
            else:
                yield KernelEstimate(found.ms * reading.times, UNKNOWN_SPREAD, ESTIMATE)

    def _experts(self, unit: UnitSpec, reading: Reading, rows: int) -> Iterator[KernelEstimate]:
        """As one product of those that the rows are expected to read, by each one's share of them. Nothing of it was
        measured."""
        read = unit.share_read(rows)
        each = max(1, round(rows * unit.share_computed / read))
        for inputs, outputs in unit.products.items():
            size = read * reading.size * outputs * inputs / unit.weights
            found = self.tables.products.packed(each, max(1, round(read * outputs)), inputs, size, PACKED_KERNEL)
            yield KernelEstimate(found.ms * reading.times, UNKNOWN_SPREAD, ESTIMATE)

    def _attention(self, phase: str) -> LatencyItem:
        spec, batch = self._part, self.workload.batch
        heads = Heads(spec.num_heads, spec.num_kv_heads, spec.head_dim)
        cache = FP8 if self.cache.rounds else BFLOAT16
        found: dict[int | None, KernelEstimate] = {}
        windows = spec.windows or (None,) * spec.num_layers
        for window in dict.fromkeys(windows):
            if phase == PREFILL:
                tokens = self.workload.prompt_tokens
                found[window] = self.tables.prefill.prompt(batch, heads, tokens, cache, window)
            else:
                tokens = min(cached_tokens(self.workload), window or self.workload.context)
                found[window] = self.tables.decode.one_token(batch, heads, tokens, cache)
        return summed("attention", [(windows.count(window), estimate) for window, estimate in found.items()])

    def _beside(self, went: Iterable[Pass]) -> LatencyItem:
        values = layer_values(self._part, self._part.widest) * self.spec.num_layers
        ms = sum(STEP_MS + MOVED * VALUE_BYTES * one.rows * values / self.tables.products.bytes_per_ms for one in went)
        return LatencyItem("norms, activations, sampling and the host", ms, ESTIMATE, None, BESIDE_SPREAD)


def summed(name: str, parts: Iterable[tuple[int, KernelEstimate]], unit: str | None = None) -> LatencyItem:
    """An item of so many of each."""
    parts = list(parts)
    total = sum(count * part.ms for count, part in parts)
    spread = sum(count * part.ms * part.spread for count, part in parts) / total if total else 0.0
    return LatencyItem(name, total, weakest(part.basis for _, part in parts), unit, spread)


def by_tables(known: VllmPricing) -> VllmPricing:
    """The same by the tables of its device, where those that are installed have it."""
    tables = tables_of(known.device)
    if tables is None:
        return known
    return TablePricing(
        known.spec, known.workload, known.device, known.holding, known.usual, known.runtime, known.unknown, known.cache,
        tables,
    )  # fmt: skip
