"""vLLM as bitfleet sees it."""

from __future__ import annotations

from planner.request import Workload
from planner.runtimes.base import FLOAT, Runtime
from planner.runtimes.by_bandwidth import Usual
from planner.runtimes.folder_runtime import BandwidthPricing, FolderHolding
from planner.runtimes.tensor_file import Tensor
from planner.runtimes.vllm import holds, tensors
from planner.runtimes.vllm.packages import VllmPackages
from profiles.device import DeviceProfile
from supernet.space import Choice
from supernet.spec import ModelSpec, UnitSpec

# The CUDA context, kernels and captured graphs; a pass without its products; the prompt tokens of a pass.
USUAL = Usual(process_bytes=1_500_000_000, step_ms=1.0, layer_ms=0.02, chunk_tokens=2048)


class VllmHolding(FolderHolding):
    """What was read of the runtime's own loader: `holds`."""

    parts = tensors.PARTS

    def refusal(self) -> str | None:
        return holds.model_refusal(self.spec)

    def unit_refusal(self, unit: UnitSpec, choice: Choice) -> str | None:
        return holds.refusal(unit, choice)

    def tensors(self, unit: UnitSpec, choice: Choice) -> tuple[Tensor, ...]:
        return tensors.tensors(unit, choice)


class Vllm(Runtime):
    """A compressed-tensors folder for vLLM on NVIDIA GPUs; transformers reads the same one anywhere."""

    name = "vllm"
    device_kinds = ("cuda",)
    activations = FLOAT
    deploys = ("scales", "codes")
    packages = VllmPackages()

    def device_refusal(self, device: DeviceProfile) -> str | None:
        return super().device_refusal(device) or holds.device_refusal(device)

    def holding(self, spec: ModelSpec) -> VllmHolding:
        return VllmHolding(spec)

    def pricing(self, spec: ModelSpec, workload: Workload, device: DeviceProfile) -> BandwidthPricing:
        return BandwidthPricing(spec, workload, device, VllmHolding(spec), USUAL)

    def versions(self) -> dict[str, str]:
        """Nothing of the runtime is needed to write what it loads."""
        return {}
