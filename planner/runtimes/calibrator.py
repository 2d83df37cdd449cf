"""Measures what a runtime costs beyond its products, on models with random weights that fresh processes serve.

Two narrow ones differ in depth alone (`solving.py`). A wide one does not fit in a cache: what it takes over the sum of
all that is known by then, the kernel table included, is a factor of its products. Memory comes from all three with a
long prompt.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from planner.runtimes.base import DECODE, ESTIMATE, Pricing, Progress
from planner.runtimes.caches import CacheType
from planner.runtimes.calibrated import PRODUCTS, SCORE_PREFILL
from planner.runtimes.child import Measurement, fastest
from planner.runtimes.passes import DECODED_TOKENS
from planner.runtimes.shapes import Shape
from planner.runtimes.solving import DEEP, LONG, MIDDLE, SHALLOW, SHORT, Solver, Times, prompted
from profiles.device import Calibration, DeviceProfile
from supernet.space import Choice, Subnet

# Of what is subtracted from each other, and of a quick profile: a machine is not as fast at all times.
TURNS, QUICK_TURNS = 2, 1
PEAKS = 3  # processes of one model whose peaks show the spread


class Calibrator(ABC):
    """Of one runtime. All linears of a model are at the first of `choices`, the layers of the `wide` one take turns."""

    solver: ClassVar[Solver]
    pricing: ClassVar[type[Pricing]]
    wide: ClassVar[Shape]
    choices: ClassVar[tuple[Choice, ...]]
    caches: ClassVar[tuple[CacheType, ...]]  # the runtime's own first, then those that scores take another time from

    @abstractmethod
    def write(self, shape: Shape, threads: int, folder: Path, cache: CacheType) -> Path:
        """A package of `subnet(shape)` with random weights, for CONTEXT tokens in such a cache."""

    @abstractmethod
    def serve(self, package: Path, prompt_tokens: int, new_tokens: int, repeats: int) -> Measurement:
        """What serving one prompt takes in a fresh process."""

    @abstractmethod
    def products_ms(self, rows: Sequence[int], threads: int) -> tuple[dict[int, float], float]:
        """Of all products of a narrow layer, in cache, by rows; and of the narrow head for one row."""

    @abstractmethod
    def solve_memory(
        self, processes: Mapping[Shape, Sequence[Measurement]], device: DeviceProfile
    ) -> tuple[Calibration, ...]:
        """From what the processes of each shape, which read the LONG prompt, leave beyond weights and cache."""

    def besides(self, wide: Path) -> tuple[Calibration, ...]:
        """What else this runtime costs, measured with the wide model's package."""
        return ()

    def subnet(self, shape: Shape) -> Subnet:
        turns = self.choices if shape == self.wide else self.choices[:1]
        return Subnet.of({unit.name: turns[(unit.layer or 0) % len(turns)] for unit in shape.spec().units})

    def calibrate(
        self, device: DeviceProfile, quick: bool = False, progress: Progress | None = None
    ) -> tuple[Calibration, ...]:
        """The numbers for this machine, with the device's threads and kernel table; about a minute, or a half."""
        report = progress or (lambda what, share: None)
        threads, known = device.threads or 1, self.solver.passes.known
        with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
            report("writing three models", 0.0)
            root, (own, *others) = Path(scratch), self.caches
            shapes = (SHALLOW, DEEP, self.wide)
            packages = {shape: self.write(shape, threads, root / shape.name, own) for shape in shapes}
            kept = {cache: self.write(DEEP, threads, root / cache.name, cache) for cache in others}
            taken, products, head = self.in_turns(packages, threads, QUICK_TURNS if quick else TURNS, report)
            report("serving with other types of cache", 0.6)
            rounded = {cache: self.serve(one, LONG, DECODED_TOKENS, repeats=2) for cache, one in kept.items()}
            besides = self.besides(packages[self.wide])
            report("measuring peaks of memory", 0.8)
            processes = {shape: [taken[shape, LONG]] for shape in (DEEP, self.wide)}
            processes[SHALLOW] = [self.serve(packages[SHALLOW], LONG, 2, repeats=1) for _ in range(PEAKS)]
        times = Times(
            taken[SHALLOW, SHORT].tpot_ms, taken[DEEP, SHORT].tpot_ms, taken[DEEP, LONG].tpot_ms,
            taken[self.wide, SHORT].tpot_ms, taken[self.wide, LONG].tpot_ms,
            {prompt: taken[DEEP, prompt].ttft_ms for prompt in (MIDDLE, LONG)}, products, head,
        )  # fmt: skip
        solved = self.solver.times(times, self.wide, threads)
        for cache, one in rounded.items():
            solved |= self.solver.cache(cache, one, times, solved[SCORE_PREFILL], threads)
        found = [*besides, *(known.calibration(name, value) for name, value in solved.items())]
        found += self.solve_memory(processes, device)
        return (*found, *self.product_factor(replace(device, calibrations=tuple(found)), times.wide_tpot))

    def in_turns(
        self, packages: Mapping[Shape, Path], threads: int, number: int, report: Progress
    ) -> tuple[dict[tuple[Shape, int], Measurement], dict[int, float], float]:
        """What serving takes by shape and prompt, and what `products_ms` says, the least of so many turns."""
        served = ((SHALLOW, SHORT), (DEEP, SHORT), (DEEP, MIDDLE), (DEEP, LONG), (self.wide, SHORT), (self.wide, LONG))
        repeats = {(self.wide, LONG): 1}  # which takes seconds as it is
        turns, products, heads = [], [], []
        for turn in range(number):
            report(f"serving them, {turn + 1} of {number}", 0.1 + 0.5 * turn / number)
            turns.append([
                self.serve(packages[shape], prompt, DECODED_TOKENS, repeats.get((shape, prompt), 2))
                for shape, prompt in served
            ])  # fmt: skip
            by_rows, head = self.products_ms(self.rows(), threads)
            products.append(by_rows)
            heads.append(head)
        least = {rows: min(one[rows] for one in products) for rows in products[0]}
        return dict(zip(served, map(fastest, zip(*turns, strict=True)), strict=True)), least, min(heads)

    def rows(self) -> list[int]:
        """With how many rows at once a narrow model's products are computed, in all that it is served with."""
        return sorted({1, *(n for prompt in (MIDDLE, LONG) for n, _ in self.solver.passes.chunks(prompted(prompt)))})

    def product_factor(self, device: DeviceProfile, tpot_ms: float) -> tuple[Calibration, ...]:
        """The wide model's time per token against what is planned for it; none where its products were not measured.

        No model is faster than its products by themselves: less than 1 says that the machine was slower when those were
        timed. Half of what the factor changes is its spread: a shape between is nearer to the table than this one.
        """
        if not device.kernels:
            return ()
        found = self.pricing(self.wide.spec(), prompted(SHORT), device).latency(self.subnet(self.wide), DECODE)
        products = sum(item.ms for item in found if item.unit)
        if any(item.basis == ESTIMATE for item in found if item.unit):
            return ()
        factor = max(1.0, (tpot_ms - sum(item.ms for item in found) + products) / products)
        return (self.solver.passes.known.calibration(PRODUCTS, factor, abs(factor - 1) / 2),)
