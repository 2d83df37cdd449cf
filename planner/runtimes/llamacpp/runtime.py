"""llama.cpp as bitfleet sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from planner.checks import Check
from planner.request import Workload
from planner.runtimes.base import Runtime
from planner.runtimes.caches import CacheType
from planner.runtimes.llamacpp import placement, stock
from planner.runtimes.llamacpp.holding import LlamaHolding
from planner.runtimes.llamacpp.packages import LlamaPackages
from planner.runtimes.llamacpp.pricing import LlamaPricing
from planner.runtimes.llamacpp.serving import CACHES, LIBRARY, RUNTIME, VERSION
from profiles.device import GPU_KINDS, KINDS, DeviceProfile
from profiles.shares import backend_of, read_estimate
from records.errors import InputError
from supernet.space import SearchSpace, Subnet
from supernet.spec import ModelSpec

if TYPE_CHECKING:
    from planner.runtimes.engine import Engine
    from supernet.keys_values import Kept

ON = {"cpu": "on its processor", "cuda": "by CUDA", "metal": "on its GPU by Metal", "vulkan": "by Vulkan"}


class LlamaCpp(Runtime):
    """One GGUF file on a CPU, on a GPU, or with some layers on each; products with int8 activations."""

    name = RUNTIME
    device_kinds = KINDS
    activations = "int8"  # of blocks of 32 values, with a scale each
    deploys = ("scales", "codes")
    packages = LlamaPackages()
    caches = CACHES
    most_sequences = 256  # LLAMA_MAX_SEQ of the build
    pinned = {LIBRARY: VERSION}

    def kept(self, cache: CacheType, spec: ModelSpec, model: Any, windows: Sequence[Any]) -> Kept:
        from planner.runtimes.llamacpp import keeping

        return keeping.kept(cache)

    def device_note(self, device: DeviceProfile) -> str:
        backend = backend_of(device)
        try:
            half = read_estimate(device, backend, "k", 1).spread
        except InputError as error:
            return f"no estimate: {error}"
        return f"{ON[backend]}, a token give or take {half:.0%}"

    def placements(self, spec: ModelSpec, device: DeviceProfile) -> tuple[int, ...]:
        return placement.choices(spec, device) if device.kind in GPU_KINDS else ()

    def holding(self, spec: ModelSpec) -> LlamaHolding:
        return LlamaHolding(spec)

    def pricing(self, spec: ModelSpec, workload: Workload, device: DeviceProfile) -> LlamaPricing:
        return LlamaPricing(spec, workload, device)

    def stock(self, spec: ModelSpec, space: SearchSpace) -> tuple[str, Subnet] | None:
        return stock.stock(spec, space)

    def versions(self) -> dict[str, str]:
        return dict(self.pinned)  # installed here or not

    def checks(self) -> Iterator[Check]:
        from planner.runtimes.llamacpp.check import check

        yield check()

    def engine(self) -> Engine:
        from planner.runtimes.llamacpp.engine import LlamaEngine
        from planner.runtimes.llamacpp.installed import check_installed

        check_installed()
        return LlamaEngine()
