"""Numbers that a runtime measured about itself on a device, or else the usual ones; what runtimes share of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from planner.runtimes.base import DECODE, ESTIMATE, MEASURED, PREFILL, LatencyItem, weakest
from planner.runtimes.caches import CacheType
from profiles.device import Calibration, DeviceProfile
from profiles.roofline import SPREAD

BASE = "base_bytes"  # the process and the library, before any weight
LAYER_BYTES = "layer_bytes"  # what the runtime keeps of a layer beside its weights
ACTIVATIONS = "activation_factor"  # bytes of a pass's buffers for a byte of a layer's values
STEP = "step_ms"  # one forward pass, without its layers
LAYER = "layer_ms"  # one layer without its products, for one token
VALUE = "value_ns"  # one value of a layer and token: norms, activations, residuals
SCORE_DECODE = "score_decode_ns"  # one value of one query head against one cached token, one token at a time
SCORE_PREFILL = "score_prefill_ns"  # the same within a prompt
PRODUCTS = "product_factor"  # what a product takes for one token in a model of wide layers, over what the table says

SCORES = {DECODE: SCORE_DECODE, PREFILL: SCORE_PREFILL}
UNITS = {
    BASE: "bytes", LAYER_BYTES: "bytes", ACTIVATIONS: "bytes/byte", STEP: "ms", LAYER: "ms", VALUE: "ns",
    SCORE_DECODE: "ns", SCORE_PREFILL: "ns", PRODUCTS: "ms/ms",
}  # fmt: skip


def factor_of(cache: CacheType, phase: str) -> str:
    """The name of what a score takes from a cache of this type, over what it takes from one of floats."""
    return f"{cache.name}_{phase}_factor"


def factor_units(caches: Iterable[CacheType]) -> dict[str, str]:
    """The units of those factors, by name."""
    return {factor_of(cache, phase): "ns/ns" for cache in caches for phase in SCORES}


@dataclass(frozen=True)
class Calibrated:
    """Those of `runtime`, by name, and their `units`; `usual` stands in for what a device's profile has not."""

    runtime: str
    usual: Mapping[str, float]
    units: Mapping[str, str]

    def value(self, device: DeviceProfile, name: str) -> tuple[float, str]:
        """The calibrated number and "measured", or the usual one and "estimate"."""
        found = device.calibration(self.runtime, name)
        return (self.usual[name], ESTIMATE) if found is None else (found.value, MEASURED)

    def spread(self, device: DeviceProfile, name: str) -> float:
        """The calibration's spread, as a share of its value; 0 where it is unknown."""
        found = device.calibration(self.runtime, name)
        return 0.0 if found is None or found.spread is None else float(found.spread)

    def score_ns(self, device: DeviceProfile, phase: str, cache: CacheType) -> tuple[float, str]:
        """What one value of one query head takes against one cached token, and its basis."""
        found, basis = self.value(device, SCORES[phase])
        if not cache.rounds:
            return found, basis
        factor, more = self.value(device, factor_of(cache, phase))
        return found * factor, weakest((basis, more))

    def item(self, device: DeviceProfile, label: str, name: str, times: float) -> LatencyItem:
        """What takes the number so many times, in ms."""
        return timed_item(label, *self.value(device, name), times)

    def calibration(self, name: str, value: float, spread: float | None = None) -> Calibration:
        """A number as a device's profile keeps it."""
        return Calibration(self.runtime, name, value, self.units[name], spread)


def timed_item(label: str, cost: float, basis: str, times: float) -> LatencyItem:
    return LatencyItem(label, cost * times, basis, None, SPREAD if basis == ESTIMATE else 0.0)
