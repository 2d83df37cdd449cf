"""YAQA (Tseng et al., arXiv 2505.22988): GPTQ with a Hessian of what a matrix makes beside that of what it reads, both
of the model's own loss, so that an error is spread over the rows to come as well as over the columns.

A model that was never quantized loses half as much as from GPTQ's codes at 2 and 3 bits (docs/log.md). Ranges are
clipped and tokens weighed as there. Tables have no Hessian of what they make, which would be as wide as a vocabulary:
they get GPTQ's codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from supernet.grids import QuantizedWeight
from supernet.quantizers.base import Quantizer, by_grid, check_groups, one_thread
from supernet.quantizers.factor import inverse_factor
from supernet.quantizers.wave import Wave
from supernet.space import Choice


@dataclass(frozen=True)
class YAQA(Quantizer):
    damping: float = 0.01  # share of either Hessian's mean diagonal that is added to it
    clip: bool = True

    needs_hessian = True
    needs_outputs = True

    def quantize(
        self, weight: Tensor, choices: Sequence[Choice], hessian: Tensor | None = None, outputs: Tensor | None = None
    ) -> dict[Choice, QuantizedWeight]:
        return {choice: found for choice, (found, _) in self.solve(weight, choices, hessian, outputs).items()}

    def solve(
        self, weight: Tensor, choices: Sequence[Choice], hessian: Tensor | None, outputs: Tensor | None
    ) -> dict[Choice, tuple[QuantizedWeight, Tensor]]:
        """As `quantize`, and with each value what was rounded to it: the weight with the errors of columns and rows
        before spread over it, float32 `(out_features, in_features)`."""
        hessian, weight = self.calibrated(hessian), weight.float()
        check_groups(weight, choices)
        found: dict[Choice, tuple[QuantizedWeight, Tensor]] = {}
        with one_thread():
            across = inverse_factor(hessian, self.damping)
            down = None if outputs is None else inverse_factor(outputs, self.damping)
            for grid, size, same in by_grid(choices):
                bits = torch.tensor([choice.bits for choice in same], device=weight.device)
                wave = Wave(grid, size, hessian.diagonal(), across, down, self.clip)
                for c, codes, scale, zero, moved in zip(same, *wave.solve(weight, bits), strict=True):
                    found[c] = grid.pack(codes, scale, zero, c, weight.shape[1]), moved
        return {choice: found[choice] for choice in choices}
