"""Round-to-nearest: each weight takes the nearest code on a range for its group.

The range covers the group. With `clip` it is shrunk where that lowers the group's squared error, each weight's counted
by the mean square of its input: the diagonal of the inputs' Hessian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from supernet.grids import GRIDS, QuantizedWeight
from supernet.quantizers.base import Quantizer, check_groups
from supernet.space import Choice


@dataclass(frozen=True)
class RTN(Quantizer):
    clip: bool = False

    @property
    def needs_hessian(self) -> bool:  # type: ignore[override]
        return self.clip

    def quantize(
        self, weight: Tensor, choices: Sequence[Choice], hessian: Tensor | None = None, outputs: Tensor | None = None
    ) -> dict[Choice, QuantizedWeight]:
        check_groups(weight, choices)
        importance = self.calibrated(hessian).diagonal() if self.clip else None
        return {choice: GRIDS[choice.grid].nearest(weight, choice, importance) for choice in choices}
