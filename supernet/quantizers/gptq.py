"""GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after the other, and the error of each is spread
over the columns still to come by the inverse Hessian of the layer's inputs.

As in QA-LoRA and LLM-QFA: groups along the inputs, act-order off. Every bit-width of a matrix is solved in
one pass, their rows stacked: rows do not interact, and all share one Hessian. The Hessian comes from the full model's
own activations, since a supernet has no single quantized predecessor (the papers quantize sequentially), and counts
each token by what an error there costs (`supernet.hessians`); without `fisher` all alike, as in the paper.

`clip` shrinks a group's range where that lowers its squared error, as the reference code's `mse` option does; here the
error of each weight counts by the mean square of its input, the Hessian's diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from supernet.grids import Grid, QuantizedWeight
from supernet.quantizers.base import Quantizer, by_grid, check_groups, one_thread, sides
from supernet.quantizers.factor import inverse_factor
from supernet.space import Choice

BLOCK = 32  # columns whose updates to the rest of the matrix are done in one product


@dataclass(frozen=True)
class GPTQ(Quantizer):
    damping: float = 0.01  # share of the Hessian's mean diagonal that is added to it
    clip: bool = True
    fisher: bool = True

    needs_hessian = True

    def quantize(
        self, weight: Tensor, choices: Sequence[Choice], hessian: Tensor | None = None, outputs: Tensor | None = None
    ) -> dict[Choice, QuantizedWeight]:
        return {choice: found for choice, (found, _) in self.solve(weight, choices, hessian).items()}

    def solve(
        self, weight: Tensor, choices: Sequence[Choice], hessian: Tensor | None
    ) -> dict[Choice, tuple[QuantizedWeight, Tensor]]:
        """As `quantize`, and with each value what was rounded to it: the weight with the errors of the columns before
        spread over it, float32 `(out_features, in_features)`."""
        hessian, weight = self.calibrated(hessian), weight.float()
        check_groups(weight, choices)
        found: dict[Choice, tuple[QuantizedWeight, Tensor]] = {}
        with one_thread():
            factor = inverse_factor(hessian, self.damping)
            for grid, group_size, same in by_grid(choices):
                found |= self._solve(grid, weight, same, group_size, hessian.diagonal(), factor)
        return {choice: found[choice] for choice in choices}

    def _solve(
        self, grid: Grid, weight: Tensor, choices: Sequence[Choice], group_size: int, importance: Tensor,
        factor: Tensor,
    ) -> dict[Choice, tuple[QuantizedWeight, Tensor]]:  # fmt: skip
        rows, columns = weight.shape
        bits = torch.tensor([c.bits for c in choices], device=weight.device).repeat_interleave(rows)
        top = (2**bits - 1).to(weight.dtype)
        # Transposed, so that the column at hand lies in one piece. `rest` is what is left to represent,
        # and a column stays as it was when its turn came.
        rest = weight.repeat(len(choices), 1).T.contiguous()
        codes = torch.empty_like(rest, dtype=torch.uint8)
        scales: list[Tensor] = []
        zeros: list[Tensor] = []
        span = max(group_size, grid.format.block)  # columns whose scales are settled together
        for start in range(0, columns, BLOCK):
            stop = min(start + BLOCK, columns)
            errors = torch.zeros(stop - start, rest.shape[1], device=rest.device)
            for column in range(start, stop):
                if column % group_size == 0:
                    first = column % span == 0
                    ahead = slice(column, column + (span if first else group_size))
                    groups = rest[ahead].clone()
                    left = stop - column  # columns beyond this block have this block's errors to come
                    groups[left:] -= factor[start:stop, stop : ahead.stop].T @ errors
                    grouped = groups.T.unflatten(1, (-1, group_size)), importance[ahead].view(-1, group_size)
                    number = column % span // group_size
                    if first:
                        settled = sides(grid, grouped[0], bits, grouped[1], self.clip)
                    if first or not self.clip:
                        scale, zero = (part[:, number] for part in settled)
                    else:
                        scale, zero = grid.again(grouped[0], bits, grouped[1], *settled, number)
                    scales.append(scale)
                    zeros.append(zero)
                codes[column] = code = grid.encode_below(rest[column], scale, zero, top)
                error = (rest[column] - (code - zero) * scale) / factor[column, column]
                rest[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
                errors[column - start] = error
            rest[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
        scale, zero = torch.stack(scales, 1), torch.stack(zeros, 1)
        parts = zip(choices, *(part.split(rows) for part in (codes.T, scale, zero, rest.T)), strict=True)
        return {choice: (grid.pack(c, s, z, choice, columns), moved) for choice, c, s, z, moved in parts}
