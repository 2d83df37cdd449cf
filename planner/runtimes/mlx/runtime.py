"""MLX as bitfleet sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from planner.checks import Check
from planner.request import Workload
from planner.runtimes.base import FLOAT, Runtime
from planner.runtimes.by_bandwidth import Usual
from planner.runtimes.caches import CacheType
from planner.runtimes.folder_runtime import BandwidthPricing
from planner.runtimes.library import Library
from planner.runtimes.mlx import holding
from planner.runtimes.mlx.holding import MlxHolding
from planner.runtimes.mlx.packages import MlxPackages
from profiles.device import DeviceProfile
from profiles.folder_shares import PACKED, Reading, read_estimate
from supernet.spec import ModelSpec

if TYPE_CHECKING:
    from supernet.keys_values import Kept

# Python, Metal's kernels and the cache of freed buffers; mlx-lm reads prompts in pieces. No datasheet gives the
# compute of these GPUs: by published prompt speeds it is about 50 operations for each byte of bandwidth.
USUAL = Usual(process_bytes=500_000_000, step_ms=0.5, layer_ms=0.02, chunk_tokens=512, ops_per_byte=50.0)
UNKNOWN = "one figure is of less than 4 bits, which take between half and twice the estimate"

# 32 ones times 32 weights of 1: code 9, zero 8, scale 1.
PRODUCT = """
import mlx.core as mx
codes = mx.full((1, 4), 0x99999999, dtype=mx.uint32)
parts = mx.ones((1, 1)), mx.full((1, 1), -8.0)
print(mx.quantized_matmul(mx.ones((1, 32)), codes, *parts, group_size=32, bits=4).item())
"""
LIBRARY = Library(
    "mlx", "mlx", (0, 32), PRODUCT, "packages for MLX are planned and written all the same; mlx-lm runs them"
)


class Mlx(Runtime):
    """A folder for mlx-lm on Apple silicon."""

    name = "mlx"
    device_kinds = ("cpu",)  # a Mac's profile is of its processor, and the GPU shares its memory
    activations = FLOAT
    deploys = ("scales", "codes")
    packages = MlxPackages()
    caches = holding.CACHES

    def device_refusal(self, device: DeviceProfile) -> str | None:
        return super().device_refusal(device) or holding.device_refusal(device)

    def device_note(self, device: DeviceProfile) -> str:
        half = read_estimate(device, self.name, Reading(1, PACKED)).spread
        return f"on its GPU by Metal, a token give or take {half:.0%}"

    def kept(self, cache: CacheType, spec: ModelSpec, model: Any, windows: Sequence[Any]) -> Kept:
        from planner.runtimes.mlx import keeping

        return keeping.kept(cache)

    def holding(self, spec: ModelSpec) -> MlxHolding:
        return MlxHolding(spec)

    def pricing(self, spec: ModelSpec, workload: Workload, device: DeviceProfile) -> BandwidthPricing:
        cache = self.cache(workload)
        return BandwidthPricing(spec, workload, device, MlxHolding(spec), USUAL, self.name, UNKNOWN, cache)

    def checks(self) -> Iterator[Check]:
        yield LIBRARY.check()

    def versions(self) -> dict[str, str]:
        """Nothing of the runtime is needed to write what it loads."""
        return {}
