"""Pruning found in the same training as the bits (SuperTickets, You et al., arXiv 2207.03677): feed-forward blocks that
keep only their first channels, or none.

Channels are ordered once, before anything is quantized: the costlier to remove, the earlier. A pruned choice is then
the first part of what is stored, takes no storage, and puts channels together that a runtime can leave out. The paper
prunes single weights by magnitude and estimates anew as it trains; here codes are frozen and shared by every subnet, so
one order must do. It comes from what a removal costs to second order (`supernet.sensitivity`), at the full model.

As in the paper the pruned share ramps up, and what was pruned may come back: every step draws anew.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supernet.progress import Progress, silent
from supernet.sensitivity import each_drawn_gradient
from supernet.space import SearchSpace, Subnet
from supernet.spec import ModelSpec


def channel_order(
    model: Any, spec: ModelSpec, windows: Tensor, seed: int, progress: Progress = silent
) -> dict[str, Tensor]:
    """The channels of each feed-forward block, by the name of the unit that reads them: the costliest to remove first.

    Removing channel c moves the output of the reading linear by W_c x_c, which costs 1/2 E[(g . W_c x_c)^2] as in
    `supernet.sensitivity`. `model` is the full model.
    """
    readers = {reader.linears[0].name: reader.name for *_, reader in spec.feed_forwards}
    costs: dict[str, Tensor] = {}

    def collect(linear: str, module: Any, x: Tensor, grad: Tensor) -> None:
        removed = ((grad @ module.weight) * x).double().square().sum(0)
        name = readers[linear]
        costs[name] = costs[name] + removed if name in costs else removed

    each_drawn_gradient(model, list(readers), windows, seed, collect, partial(progress, "order channels"))
    return {name: cost.argsort(descending=True, stable=True).cpu() for name, cost in costs.items()}


@torch.no_grad()
def reorder(model: Any, spec: ModelSpec, order: Mapping[str, Tensor]) -> None:
    """Put the channels of the full model in `order`. It computes the same: makers' rows and readers' columns agree."""
    for *makers, reader in spec.feed_forwards:
        first = order[reader.name]
        for maker in makers:
            assert maker.channels is not None
            rows = torch.cat([first + start for start, _ in maker.channels.spans(0)])
            for linear in maker.linears:
                module = model.get_submodule(linear.name)
                _assign(module.weight, module.weight[rows.to(module.weight.device)])
                if module.bias is not None:
                    _assign(module.bias, module.bias[rows.to(module.bias.device)])
        for linear in reader.linears:
            weight = model.get_submodule(linear.name).weight
            _assign(weight, weight[:, first.to(weight.device)])


def _assign(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.data = value.contiguous()


@dataclass(frozen=True)
class Pruning:
    """How a step's subnets lose channels, whatever sampler drew their bits. The numbers are ours, not the paper's.

    Nothing is pruned for the share `start` of the steps; then ever smaller numbers of channels open, the last at
    `all_open`. A share `whole` of the subnets stays whole, since every unpruned plan counts on them; in the others
    every block is pruned with one probability, itself drawn between 0 and `most`.
    """

    start: float = 0.2
    all_open: float = 0.6
    whole: float = 0.5
    most: float = 0.5

    def open(self, space: SearchSpace, step: int, steps: int) -> dict[tuple[str, ...], tuple[int, ...]]:
        """The numbers of channels that coupled units may keep at `step`, beside all of them."""
        found = {}
        for group in space.coupled:
            kept = sorted({c.kept for c in space[group[0]] if c.kept is not None}, reverse=True)
            between = (self.all_open - self.start) / max(1, len(kept) - 1)
            starts = [round((self.start + between * number) * steps) for number in range(len(kept))]
            found[group] = tuple(k for k, first in zip(kept, starts, strict=True) if step >= first)
        return found

    def draw(self, subnet: Subnet, space: SearchSpace, step: int, steps: int, seed: int, number: int = 0) -> Subnet:
        """`subnet`, the step's `number`th, with some of its blocks pruned; follows from the arguments alone."""
        draw = random.Random(f"{seed}/{step}/{number}/kept")
        share = 0.0 if draw.random() < self.whole else draw.uniform(0, self.most)
        choices = dict(subnet.items)
        for group, kept in self.open(space, step, steps).items():
            if kept and draw.random() < share:
                left = draw.choice(kept)
                choices |= {unit: space.pruned(unit, choices[unit], left) for unit in group}
        return Subnet.of(choices)
