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
from planner.runtimes.calibrated import PRODUCTS
from planner.runtimes.child import Measurement
from planner.runtimes.passes import DECODED_TOKENS
from planner.runtimes.shapes import Shape
from planner.runtimes.solving import DEEP, LONG, MIDDLE, SHALLOW, SHORT, Solver, Times, prompted
from profiles.device import Calibration, DeviceProfile
from supernet.space import Choice, Subnet

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

    def calibrate(self, device: DeviceProfile, progress: Progress | None = None) -> tuple[Calibration, ...]:
        """The numbers for this machine, with the device's threads and kernel table; about half a minute."""
        report = progress or (lambda what, share: None)
        threads, known = device.threads or 1, self.solver.passes.known
        with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
            report("writing three models", 0.0)
            root, (own, *others) = Path(scratch), self.caches
            shapes = (SHALLOW, DEEP, self.wide)
            packages = {shape: self.write(shape, threads, root / shape.name, own) for shape in shapes}
            kept = {cache: self.write(DEEP, threads, root / cache.name, cache) for cache in others}
            report("serving the narrow ones", 0.1)
            shallow = self.serve(packages[SHALLOW], SHORT, DECODED_TOKENS, repeats=5)
            deep = self.serve(packages[DEEP], SHORT, DECODED_TOKENS, repeats=5)
            middle = self.serve(packages[DEEP], MIDDLE, 2, repeats=3)
            long = self.serve(packages[DEEP], LONG, DECODED_TOKENS, repeats=2)
            report("serving with other types of cache", 0.5)
            rounded = {cache: self.serve(one, LONG, DECODED_TOKENS, repeats=2) for cache, one in kept.items()}
            report("serving the wide one", 0.65)
            wide = self.serve(packages[self.wide], SHORT, DECODED_TOKENS, repeats=5)
            besides = self.besides(packages[self.wide])
            report("measuring peaks of memory", 0.75)
            processes = {SHALLOW: [self.serve(packages[SHALLOW], LONG, 2, repeats=1) for _ in range(PEAKS)]}
            processes |= {DEEP: [long], self.wide: [self.serve(packages[self.wide], LONG, 2, repeats=1)]}
        report("timing their products", 0.9)
        products, head = self.products_ms(self.rows(), threads)
        ttft = {MIDDLE: middle.ttft_ms, LONG: long.ttft_ms}
        solved = self.solver.times(Times(shallow.tpot_ms, deep.tpot_ms, long.tpot_ms, ttft, products, head), threads)
        for cache, one in rounded.items():
            solved |= self.solver.cache(cache, one.ttft_ms - long.ttft_ms, one.tpot_ms - long.tpot_ms, solved, threads)
        found = [*besides, *(known.calibration(name, value) for name, value in solved.items())]
        found += self.solve_memory(processes, device)
        return (*found, *self.product_factor(replace(device, calibrations=tuple(found)), wide.tpot_ms))

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
