"""Time to first token and time per token of a subnet on a device, itemised, with where each number comes from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import cast

from planner.plan import LatencyRow, LatencyTable
from planner.runtimes.base import DECODE, PREFILL, LatencyItem, Pricing, weakest
from supernet.space import Subnet


@dataclass(frozen=True)
class LatencyEstimate:
    """Milliseconds of a pass over the prompt (`prefill`) and of one token after it (`decode`).

    `basis` is the weakest of the items', `spread` the relative half-width if every product erred the same way.
    """

    prefill: tuple[LatencyItem, ...]
    decode: tuple[LatencyItem, ...]

    @property
    def ttft_ms(self) -> float:
        return sum(item.ms for item in self.prefill)

    @property
    def tpot_ms(self) -> float:
        return sum(item.ms for item in self.decode)

    @property
    def basis(self) -> str:
        return weakest(item.basis for item in (*self.prefill, *self.decode))

    @property
    def spread(self) -> float:
        return sum(item.ms * item.spread for item in self.decode) / self.tpot_ms

    def to_json(self) -> LatencyTable:
        return {
            "ttft_ms": self.ttft_ms,
            "tpot_ms": self.tpot_ms,
            "basis": self.basis,
            "spread": self.spread,
            "prefill": [cast(LatencyRow, asdict(item)) for item in self.prefill],
            "decode": [cast(LatencyRow, asdict(item)) for item in self.decode],
        }


def estimate_latency(pricing: Pricing, subnet: Subnet) -> LatencyEstimate:
    """Both phases of the workload on the device; InputError for a device of which no speed is known."""
    return LatencyEstimate(pricing.latency(subnet, PREFILL), pricing.latency(subnet, DECODE))
