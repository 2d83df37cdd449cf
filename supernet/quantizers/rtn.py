"""Round-to-nearest: each group's scale and zero cover its range, each weight takes the nearest code."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from supernet.grids import IntegerGrid, QuantizedWeight
from supernet.quantizers.base import Quantizer, check_groups
from supernet.space import Choice


class RTN(Quantizer):
    needs_hessian = False

    def quantize(
        self, weight: Tensor, choices: Sequence[Choice], hessian: Tensor | None = None
    ) -> dict[Choice, QuantizedWeight]:
        check_groups(weight, choices)
        return {choice: IntegerGrid().nearest(weight, choice) for choice in choices}
