"""Measures what llama.cpp costs beyond its products; the models are GGUF files. The wide one has many tokens, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from planner.runtimes.caches import CacheType
from planner.runtimes.calibrated import ACTIVATIONS, BASE, LAYER_BYTES
from planner.runtimes.calibrator import Calibrator
from planner.runtimes.child import Measurement
from planner.runtimes.llamacpp import amounts, costs, fresh, kernels, latency, memory, random_gguf, tensors
from planner.runtimes.llamacpp.formats import type_of
from planner.runtimes.llamacpp.pricing import LlamaPricing
from planner.runtimes.llamacpp.serving import CACHES, CHUNK_TOKENS, cache_of
from planner.runtimes.shapes import Shape
from planner.runtimes.solving import CONTEXT, LONG, SHALLOW, Solver, by_layers, middle, peak_spread, prompted
from profiles.device import Calibration, DeviceProfile
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec

WIDE = Shape("wide", 6, 896, 4864, 14, 2, 64, 65536)
CHOICE = Choice(4, 32, "sym")
CACHED_BYTES = 2**19  # of weights to walk over twice, for products that stay in cache


class LlamaCalibrator(Calibrator):
    """Logits are computed for a prompt's last token only, and a token is picked by the process that asks."""

    solver = Solver(latency.PASSES, head_each_pass=False, picking_ns=costs.USUAL[costs.LOGIT])
    pricing = LlamaPricing
    wide = WIDE
    choices = (CHOICE, Choice(8, 32, "sym"))
    caches = CACHES

    def write(self, shape: Shape, threads: int, folder: Path, cache: CacheType) -> Path:
        return random_gguf.write(shape, self.subnet(shape), CONTEXT, threads, folder, kv_type=cache.name)

    def serve(self, package: Path, prompt_tokens: int, new_tokens: int, repeats: int) -> Measurement:
        return fresh.measure(package, prompt_tokens, CONTEXT, new_tokens=new_tokens, repeats=repeats)

    def besides(self, wide: Path) -> tuple[Calibration, ...]:
        return (costs.KNOWN.calibration(costs.LOGIT, 1e6 * fresh.picking_ms(wide) / WIDE.vocabulary),)

    def products_ms(self, rows: Sequence[int], threads: int) -> tuple[dict[int, float], float]:
        kind, spec = type_of(CHOICE), replace(SHALLOW, layers=1).spec()
        sizes = [size for unit in spec.units if not unit.is_table for size in amounts.products(spec, unit)]
        cases = [(kind, k, n, tuple(rows)) for k, n in sorted(set(sizes))]
        found = kernels.timed(
            [*cases, (kind, SHALLOW.hidden, SHALLOW.vocabulary, (1,))], threads, CACHED_BYTES, 3, cold=False
        )
        times = {(e.in_features, e.out_features, e.rows): e.p10_ms for e in found}
        head = times[SHALLOW.hidden, SHALLOW.vocabulary, 1]
        return {n: sum(times[k, m, n] for k, m in sizes) for n in rows}, head

    def solve_memory(
        self, processes: Mapping[Shape, Sequence[Measurement]], device: DeviceProfile
    ) -> tuple[Calibration, ...]:
        """Once loaded, a model leaves its layers and tokens; what the peak is above that are the buffers of a pass."""
        left, grown = {}, {}
        for shape, some in processes.items():
            one, spec = middle(some), shape.spec()
            left[shape] = one.loaded_bytes - exact_bytes(spec, self.subnet(shape), device.architecture)
            picking = memory.activation_bytes(spec, prompted(LONG), 0.0)
            grown[shape] = one.peak_bytes - one.loaded_bytes - picking
        layer, alone = by_layers(left)
        token = max(0.0, (alone[WIDE] - alone[SHALLOW]) / (WIDE.vocabulary - SHALLOW.vocabulary))
        values = {s: CHUNK_TOKENS * amounts.FLOAT_BYTES * amounts.layer_values(s.spec()) for s in processes}
        factor = max(0.0, (grown[WIDE] - grown[SHALLOW]) / (values[WIDE] - values[SHALLOW]))
        base = alone[SHALLOW] - token * SHALLOW.vocabulary + grown[SHALLOW] - factor * values[SHALLOW]
        return (
            costs.KNOWN.calibration(BASE, base, peak_spread(processes, base)),
            costs.KNOWN.calibration(LAYER_BYTES, layer),
            costs.KNOWN.calibration(costs.TOKEN_BYTES, token),
            costs.KNOWN.calibration(ACTIVATIONS, factor),
        )


def exact_bytes(spec: ModelSpec, chosen: Subnet, architecture: str | None) -> int:
    """What is in memory beside the process, its vocabulary and the buffers of a pass."""
    units = sum(memory.unit_bytes(spec, unit, chosen[unit.name], architecture) for unit in spec.units)
    return units + tensors.float_bytes(spec) + memory.kv_bytes(spec, CONTEXT, 1, cache_of(prompted(LONG)))
