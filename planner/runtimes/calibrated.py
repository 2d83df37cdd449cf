"""Numbers that a runtime measured about itself on a device, or else the usual ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.runtimes.base import ESTIMATE, MEASURED


@dataclass(frozen=True)
class Calibrated:
    """Those of `runtime`, by name; `usual` stands in for what a device's profile has not."""

    runtime: str
    usual: Mapping[str, float]

    def value(self, device: Any, name: str) -> tuple[float, str]:
        """The calibrated number and "measured", or the usual one and "estimate"."""
        found = device.calibration(self.runtime, name)
        return (self.usual[name], ESTIMATE) if found is None else (found.value, MEASURED)

    def spread(self, device: Any, name: str) -> float:
        """The calibration's spread, as a share of its value; 0 where it is unknown."""
        found = device.calibration(self.runtime, name)
        return 0.0 if found is None or found.spread is None else float(found.spread)


def times_as_long(more_ms: float, plain_ms: float) -> float:
    """The factor of what takes so much more than the plain way; 1 where the plain way was too short to be seen."""
    return max(0.0, 1 + more_ms / plain_ms) if plain_ms > 0 else 1.0
