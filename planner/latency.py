"""Time to first token and time per token of a subnet on a device, itemised, with where each number comes from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict

from planner.runtimes.base import DECODE, PREFILL, LatencyItem, Pricing, weakest
from records.reading import as_record
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
        off = sum(item.ms * item.spread for item in self.decode)
        return off / self.tpot_ms if self.tpot_ms else 0.0

    def resting_on(self, basis: str) -> LatencyEstimate:
        """The same times, every item with this basis."""
        return LatencyEstimate(
            tuple(replace(item, basis=basis) for item in self.prefill),
            tuple(replace(item, basis=basis) for item in self.decode),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "ttft_ms": self.ttft_ms,
            "tpot_ms": self.tpot_ms,
            "basis": self.basis,
            "spread": self.spread,
            "prefill": [asdict(item) for item in self.prefill],
            "decode": [asdict(item) for item in self.decode],
        }

    @classmethod
    def from_json(cls, data: Any) -> LatencyEstimate:
        """The sums are made anew from the items. InputError for anything that `to_json` did not write."""
        table = as_record(_Table, data, "an estimate of latency")
        return cls(tuple(table["prefill"]), tuple(table["decode"]))


class _Table(TypedDict):
    ttft_ms: float
    tpot_ms: float
    basis: str
    spread: float
    prefill: list[LatencyItem]
    decode: list[LatencyItem]


def estimate_latency(pricing: Pricing, subnet: Subnet) -> LatencyEstimate:
    """Both phases of the workload on the device; InputError for a device of which no speed is known."""
    return LatencyEstimate(pricing.latency(subnet, PREFILL), pricing.latency(subnet, DECODE))
