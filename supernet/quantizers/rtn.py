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
        grid = IntegerGrid()
        found = {}
        for choice in choices:
            grouped = weight.view(weight.shape[0], -1, choice.group_size)
            scale, zero = grid.parameters(grouped, choice.bits)
            codes = grid.encode(grouped, scale, zero, choice.bits).flatten(1)
            found[choice] = grid.pack(codes, scale.squeeze(-1), zero.squeeze(-1), choice, weight.shape[1])
        return found
