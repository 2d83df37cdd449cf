"""ONNX Runtime as bitfleet sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from planner.checks import Check
from planner.request import Workload
from planner.runtimes.base import Runtime
from planner.runtimes.caches import CacheType
from planner.runtimes.onnxruntime import storage
from planner.runtimes.onnxruntime.cache import CACHES
from planner.runtimes.onnxruntime.holding import OnnxHolding
from planner.runtimes.onnxruntime.installed import check_installed, versions
from planner.runtimes.onnxruntime.packages import OnnxPackages
from planner.runtimes.onnxruntime.pricing import OnnxPricing
from profiles.device import DeviceProfile
from profiles.roofline import roofline
from supernet.space import SearchSpace, Subnet
from supernet.spec import ModelSpec
from supernet.ties import Groups

if TYPE_CHECKING:
    from planner.runtimes.engine import Engine
    from supernet.keys_values import Kept


class OnnxRuntime(Runtime):
    """onnxruntime-genai on CPU, products in `MatMulNBits` with int8 activations."""

    name = "onnxruntime"
    device_kinds = ("cpu",)
    activations = "int8"  # accuracy level 4 of MatMulNBits
    deploys = ("scales", "codes")
    packages = OnnxPackages()
    caches = CACHES

    def ties(self, spec: ModelSpec) -> Groups:
        return storage.ties(spec)

    def device_note(self, device: DeviceProfile) -> str:
        found = roofline(device, 1, 1)
        return "on its processor, by clock and bandwidth" if found else "no estimate: profile it where it is"

    def kept(self, cache: CacheType, spec: ModelSpec, model: Any, windows: Sequence[Any]) -> Kept:
        from planner.runtimes.onnxruntime import keeping

        return keeping.kept(spec.rotary_dim, model, windows)

    def holding(self, spec: ModelSpec) -> OnnxHolding:
        return OnnxHolding(spec)

    def pricing(self, spec: ModelSpec, workload: Workload, device: DeviceProfile) -> OnnxPricing:
        return OnnxPricing(spec, workload, device)

    def stock(self, spec: ModelSpec, space: SearchSpace) -> tuple[str, Subnet] | None:
        """Of onnxruntime-genai's builder at int4, which leaves the embedding as it is: the largest that there is."""
        return ("types of int4", space.uniform(spec, 4)) if 4 in space.bits(spec) else None

    def versions(self) -> dict[str, str]:
        return versions()

    def checks(self) -> Iterator[Check]:
        from planner.runtimes.onnxruntime import check

        yield check.multiplies()
        yield check.genai_loads()

    def engine(self) -> Engine:
        check_installed()
        from planner.runtimes.onnxruntime.engine import OnnxEngine

        return OnnxEngine()
