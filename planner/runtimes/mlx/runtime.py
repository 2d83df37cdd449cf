"""MLX as bitfleet sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from planner.request import Workload
from planner.runtimes.base import FLOAT, Runtime
from planner.runtimes.by_bandwidth import Usual
from planner.runtimes.caches import CacheType
from planner.runtimes.folder_runtime import BandwidthPricing, FolderHolding
from planner.runtimes.mlx import holds, tensors
from planner.runtimes.mlx.packages import MlxPackages
from planner.runtimes.tensor_file import Tensor
from profiles.device import DeviceProfile
from profiles.folder_shares import PACKED, Reading
from supernet.space import Choice
from supernet.spec import ModelSpec, UnitSpec

if TYPE_CHECKING:
    from supernet.keys_values import Kept

# Python, Metal's kernels and the cache of freed buffers; mlx-lm reads prompts in pieces. No datasheet gives the
# compute of these GPUs: by published prompt speeds it is about 50 operations for each byte of bandwidth.
USUAL = Usual(process_bytes=500_000_000, step_ms=0.5, layer_ms=0.02, chunk_tokens=512, ops_per_byte=50.0)
LEAST_KNOWN = 4  # bits of which speeds were published, but for one of 3
UNKNOWN = "one figure is of less than 4 bits, which take between half and twice the estimate"


class MlxHolding(FolderHolding):
    """What was read of the runtime's own loader: `holds`."""

    parts = tensors.PARTS

    def refusal(self) -> str | None:
        return holds.model_refusal(self.spec)

    def unit_refusal(self, unit: UnitSpec, choice: Choice) -> str | None:
        return holds.refusal(unit, choice)

    def tensors(self, unit: UnitSpec, choice: Choice) -> tuple[Tensor, ...]:
        return tensors.tensors(unit, choice)

    def reading(self, unit: UnitSpec, choice: Choice) -> Reading:
        return Reading(self.unit_bytes(unit, choice), PACKED, known=choice.bits >= LEAST_KNOWN)


class Mlx(Runtime):
    """A folder for mlx-lm on Apple silicon."""

    name = "mlx"
    device_kinds = ("cpu",)  # a Mac's profile is of its processor, and the GPU shares its memory
    activations = FLOAT
    deploys = ("scales", "codes")
    packages = MlxPackages()
    caches = holds.CACHES

    def device_refusal(self, device: DeviceProfile) -> str | None:
        return super().device_refusal(device) or holds.device_refusal(device)

    def kept(self, cache: CacheType, spec: ModelSpec, model: Any, windows: Sequence[Any]) -> Kept:
        from planner.runtimes.mlx import keeping

        return keeping.kept(cache)

    def holding(self, spec: ModelSpec) -> MlxHolding:
        return MlxHolding(spec)

    def pricing(self, spec: ModelSpec, workload: Workload, device: DeviceProfile) -> BandwidthPricing:
        cache = self.cache(workload)
        return BandwidthPricing(spec, workload, device, MlxHolding(spec), USUAL, self.name, UNKNOWN, cache)

    def versions(self) -> dict[str, str]:
        """Nothing of the runtime is needed to write what it loads."""
        return {}
