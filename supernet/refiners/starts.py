"""Where learned rounding of a block starts: at the nearest codes, or at those of GPTQ.

GPTQ moves a weight by the errors of the columns before it, and rounds what that makes (arXiv 2210.17323, Eq. 3). A
block that is learned has quantized predecessors, so its Hessians are of what it reads behind those, as in the paper;
tokens count by what an error of the block's output costs. Learning goes on from where GPTQ had each weight in its
cell, but INWARD of the way from the centre: codes that fit together are not to move as easily as nearest ones
(docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from supernet.blocks import output_of
from supernet.experts import routed
from supernet.grids import QuantizedWeight
from supernet.hessians import add_square, mirrored
from supernet.model import removed_after
from supernet.quantizers.gptq import GPTQ
from supernet.refiners.turn import AT_ONCE, Block, Turn

SOLVED = 64  # windows for GPTQ's Hessians
INWARD = 0.5


Start = list[tuple[QuantizedWeight, Tensor]]
"""For each part, codes and the weight that learning takes to be behind them."""


def nearest(turn: Turn) -> Start:
    return [(part.nearest, part.weight) for part in turn.parts]


@torch.no_grad()
def gptq(turn: Turn) -> Start:
    start = []
    sums = hessians(turn.block, [part.module for part in turn.parts], turn.inputs[:SOLVED])
    for part, hessian in zip(turn.parts, sums, strict=True):
        found, moved = GPTQ().solve(part.weight, [part.choice], hessian)[part.choice]
        centre = found.dequantize()
        start.append((found, torch.lerp(centre, moved, INWARD)))
    return start


def hessians(block: Block, modules: Sequence[nn.Module], inputs: Tensor) -> list[Tensor]:
    """Sums of `t x x^T` over the tokens of `inputs`, float32, one for each of the full model's `modules`. An expert
    reads some of them, and its errors reach the block's output times the token's share of it."""
    sums: dict[nn.Module, Tensor] = {}
    for start in range(0, len(inputs), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        tokens = block.tokens[rows].reshape(-1, 1)
        chosen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def watch(
            module: nn.Module, args: tuple[Tensor, ...], tokens: Tensor = tokens,
            chosen: dict[nn.Module, tuple[Tensor, Tensor]] = chosen,
        ) -> None:  # fmt: skip
            if module in chosen:
                some, shares = chosen[module]
                tokens = tokens[some] * shares.float().square().unsqueeze(1)
            x = args[0].flatten(0, -2).float()
            if module not in sums:
                sums[module] = x.new_zeros(x.shape[1], x.shape[1])
            add_square(sums[module], x, tokens)

        hooks = routed(block.layer, chosen)
        with removed_after([*hooks, *(module.register_forward_pre_hook(watch) for module in modules)]):
            output_of(block.layer, inputs[rows], block.arguments)
    for module in modules:
        if module not in sums:  # an expert that no token chose: GPTQ rounds to nearest where nothing was read
            side = int(module.weight.shape[1])  # type: ignore[index]
            sums[module] = torch.zeros(side, side, device=inputs.device)
    return [mirrored(sums[module]) for module in modules]


STARTS: dict[str, Callable[[Turn], Start]] = {"nearest": nearest, "gptq": gptq}
