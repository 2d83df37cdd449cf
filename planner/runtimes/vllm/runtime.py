"""vLLM as bitfleet sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from planner.request import Workload
from planner.runtimes.base import FLOAT, Runtime
from planner.runtimes.by_bandwidth import Usual
from planner.runtimes.caches import CacheType
from planner.runtimes.folder_runtime import BandwidthPricing, FolderHolding
from planner.runtimes.tensor_file import Tensor
from planner.runtimes.vllm import holds, tensors
from planner.runtimes.vllm.packages import VllmPackages
from profiles.device import DeviceProfile
from profiles.folder_shares import FLOAT as FLOAT16
from profiles.folder_shares import PACKED, Reading
from supernet.space import Choice
from supernet.spec import EMBEDDING, ModelSpec, UnitSpec
from supernet.ties import Groups

if TYPE_CHECKING:
    from supernet.keys_values import Kept

# The CUDA context, kernels and captured graphs; a pass without its products; the prompt tokens of a pass.
USUAL = Usual(process_bytes=1_500_000_000, step_ms=1.0, layer_ms=0.02, chunk_tokens=2048)

# How long Humming's product of one row takes beside its own of 4 bits, by bits (vLLM's pull request 34556).
HUMMING = {2: 0.93, 3: 1.02, 5: 1.19, 6: 1.23, 7: 1.29, 8: 1.33}
UNKNOWN = (
    "none is of its Humming kernels (2, 3, 5, 6 and 7 bits, 8 bits with zeros), whose time beside 4 bits is from a "
    "table of theirs and good to a factor of two"
)


class VllmHolding(FolderHolding):
    """What was read of the runtime's own loader: `holds`."""

    parts = tensors.PARTS

    def refusal(self) -> str | None:
        return holds.model_refusal(self.spec)

    def unit_refusal(self, unit: UnitSpec, choice: Choice) -> str | None:
        return holds.refusal(unit, choice)

    def tensors(self, unit: UnitSpec, choice: Choice) -> tuple[Tensor, ...]:
        return tensors.tensors(unit, choice)

    def reading(self, unit: UnitSpec, choice: Choice) -> Reading:
        if unit.role == EMBEDDING:
            return Reading(self.unit_bytes(unit, choice), FLOAT16)
        if holds.kernel(choice) == holds.MARLIN:
            return Reading(self.unit_bytes(unit, choice), PACKED)
        usual = self.unit_bytes(unit, replace(choice, bits=4, grid=holds.MIDDLE))
        return Reading(usual, PACKED, known=False, times=HUMMING[choice.bits])


class Vllm(Runtime):
    """A compressed-tensors folder for vLLM on NVIDIA GPUs; transformers reads the same one anywhere."""

    name = "vllm"
    device_kinds = ("cuda",)
    activations = FLOAT
    deploys = ("scales", "codes")
    packages = VllmPackages()
    caches = holds.CACHES

    def ties(self, spec: ModelSpec) -> Groups:
        return holds.ties(spec)

    def device_refusal(self, device: DeviceProfile) -> str | None:
        return super().device_refusal(device) or holds.device_refusal(device)

    def kept(self, cache: CacheType, spec: ModelSpec, model: Any, windows: Sequence[Any]) -> Kept:
        from planner.runtimes.vllm import keeping

        return keeping.kept()

    def holding(self, spec: ModelSpec) -> VllmHolding:
        return VllmHolding(spec)

    def pricing(self, spec: ModelSpec, workload: Workload, device: DeviceProfile) -> BandwidthPricing:
        cache = self.cache(workload)
        rounded = "; vLLM runs this model in bfloat16, which rounds scales to 8 bits"
        said = UNKNOWN + (rounded if spec.architecture in holds.BFLOAT16 else "")
        return BandwidthPricing(spec, workload, device, VllmHolding(spec), USUAL, self.name, said, cache)

    def versions(self) -> dict[str, str]:
        """Nothing of the runtime is needed to write what it loads."""
        return {}
