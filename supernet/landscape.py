"""What subnets lose on text for searching, and how their loss slopes: what a search that measures asks of a supernet.

The text is none that plans are chosen or judged by, or a search would fit what it is measured with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from supernet.build import Supernet
from supernet.evaluate import evaluate
from supernet.model import compute_dtype
from supernet.progress import Progress, silent
from supernet.reference import Reference
from supernet.slopes import slopes
from supernet.space import Choice, Subnet

JUDGES = 16  # windows that losses are measured on; each sample of slopes has as many of its own
SAMPLES = 2
WINDOWS = JUDGES * SAMPLES


@dataclass(frozen=True)
class MeasuredLandscape:
    """`reference` has `WINDOWS` windows. Slopes of the first sample are taken where losses are measured."""

    supernet: Supernet
    reference: Reference
    progress: Progress = silent
    samples: ClassVar[int] = SAMPLES

    def losses(self, subnets: Sequence[Subnet]) -> list[float]:
        """KL per token from the full model."""
        judged = self._windows(0)
        return [one.kl for one in evaluate(self.supernet, subnets, judged, self.progress, self._dtype)]

    def slopes(self, subnet: Subnet, sample: int) -> Mapping[str, Mapping[Choice, float]]:
        return slopes(self.supernet, subnet, self._windows(sample), self._dtype, self.progress)

    def _windows(self, sample: int) -> Reference:
        return self.reference.part(slice(sample * JUDGES, (sample + 1) * JUDGES))

    @property
    def _dtype(self) -> torch.dtype:
        return compute_dtype(self.supernet.model.device)
