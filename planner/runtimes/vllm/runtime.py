"""vLLM as bitfleet sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from planner.amounts import size
from planner.checks import Check
from planner.request import Workload
from planner.runtimes.base import FLOAT, Runtime
from planner.runtimes.by_bandwidth import Usual
from planner.runtimes.caches import CacheType
from planner.runtimes.library import Library
from planner.runtimes.vllm import holding, memory, scheduling
from planner.runtimes.vllm.holding import VllmHolding
from planner.runtimes.vllm.packages import VllmPackages
from planner.runtimes.vllm.pricing import VllmPricing
from profiles.device import DeviceProfile
from profiles.gpu_tables import package
from records.errors import InputError
from supernet.spec import ModelSpec
from supernet.ties import Groups

if TYPE_CHECKING:
    from supernet.keys_values import Kept

# A pass without its products; its tokens are as `scheduling` has them for a device, and memory is in `memory`.
USUAL = Usual(process_bytes=0, step_ms=1.0, layer_ms=0.02, chunk_tokens=2048)
UNKNOWN = (
    "nobody published speeds of vLLM's Humming kernels (2, 3, 5, 6 and 7 bits, 8 bits with zeros), whose time beside 4 "
    "bits is from a table of theirs and good to a factor of two"
)

LIBRARY = Library(
    "compressed-tensors", "vllm", (0, 20), None,
    "packages for vLLM are planned and written all the same; transformers reads them with it",
)  # fmt: skip

TABLES = Library(
    package.PACKAGE, "gpu-tables", (0, 12), None, "times on server GPUs are planned by their bandwidth, not by kernels"
)


class Vllm(Runtime):
    """A compressed-tensors folder for vLLM on NVIDIA GPUs; transformers reads the same one anywhere."""

    name = "vllm"
    device_kinds = ("cuda",)
    activations = FLOAT
    deploys = ("scales", "codes")
    packages = VllmPackages()
    caches = holding.CACHES

    def ties(self, spec: ModelSpec) -> Groups:
        return holding.ties(spec)

    def device_refusal(self, device: DeviceProfile) -> str | None:
        return super().device_refusal(device) or holding.device_refusal(device)

    def device_note(self, device: DeviceProfile) -> str:
        taken = size(memory.usable_bytes(device, 1))
        timed = "" if package.system_of(device) is None else f"; kernels {package.timed()}"
        return f"takes {taken}: {holding.MARLIN} for {holding.MARLIN_RUNS}, else {holding.HUMMING}{timed}"

    def kept(self, cache: CacheType, spec: ModelSpec, model: Any, windows: Sequence[Any]) -> Kept:
        from planner.runtimes.vllm import keeping

        return keeping.kept()

    def holding(self, spec: ModelSpec) -> VllmHolding:
        return VllmHolding(spec)

    def usable_bytes(self, device: DeviceProfile, gpus: int = 1) -> int:
        return memory.usable_bytes(device, gpus)

    def pricing(self, spec: ModelSpec, workload: Workload, device: DeviceProfile) -> VllmPricing:
        """InputError where vLLM runs the model in a type that the device has not."""
        cache = self.cache(workload)
        if (refusal := holding.type_refusal(spec, device)) is not None:
            raise InputError(refusal)
        rounded = "; vLLM runs this model in bfloat16, which rounds scales to 8 bits"
        said = UNKNOWN + (rounded if spec.architecture in holding.BFLOAT16 else "")
        timed = package.system_of(device) is not None
        if timed and package.root() is None:
            said += f"; kernels of this GPU were {package.timed()}"
        usual = replace(USUAL, chunk_tokens=scheduling.pass_tokens(workload, device))
        pricing = VllmPricing(spec, workload, device, VllmHolding(spec), usual, self.name, said, cache)
        if timed and package.root() is not None:
            from planner.runtimes.vllm.by_tables import by_tables

            pricing = by_tables(pricing)
        if device.kernels:
            from planner.runtimes.vllm.by_kernels import by_kernels

            pricing = by_kernels(pricing)
        return pricing

    def checks(self) -> Iterator[Check]:
        yield LIBRARY.check()
        yield TABLES.check()

    def versions(self) -> dict[str, str]:
        """Nothing of the runtime is needed to write what it loads."""
        return {}
