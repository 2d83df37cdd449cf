"""What the heads of several subnets read of the same windows; blocks that subnets begin alike with are computed once.

A block's output depends on the embedding and on the blocks up to it. Of subnets in the order of their choices, the one
before shares the longest beginning with each, so that one state for each depth is all that has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from supernet.blocks import decoder_layers, skipped
from supernet.build import Supernet
from supernet.model import hidden_states, removed_after
from supernet.space import Choice, Subnet
from supernet.spec import HEAD


def hidden_of_each(
    supernet: Supernet, subnets: Sequence[Subnet], windows: Tensor, report: Callable[[float], None] = lambda share: None
) -> list[Tensor]:
    """For each subnet, `(windows, tokens, hidden_size)`; `report` is told what share of them is done."""
    layers = decoder_layers(supernet.model)
    begun = [_beginnings(supernet, subnet, len(layers)) for subnet in subnets]
    order = sorted(range(len(subnets)), key=begun.__getitem__)
    shared = [0, *(_alike(begun[one], begun[other]) for one, other in zip(order, order[1:], strict=False))]
    if any(adapter.routes for subnet in subnets for adapter in supernet.adapters(subnet).values()):
        shared = [0] * len(subnets)  # such adapters are told of the whole subnet, whatever block they are in
    found: dict[int, Tensor] = {}
    states: dict[int, Any] = {}  # by how many blocks were computed
    for number, (index, known) in enumerate(zip(order, shared, strict=True)):
        report(number / len(subnets))
        states = {depth: state for depth, state in states.items() if depth <= known}
        supernet.activate(subnets[index])
        with (
            _kept(layers, {depth for depth in shared[number + 1 :] if depth > known}, states),
            skipped(layers[:known], states.get(known)),
        ):
            found[index] = hidden_states(supernet.model, windows)
    return [found[index] for index in range(len(subnets))]


def _beginnings(supernet: Supernet, subnet: Subnet, layers: int) -> list[tuple[Choice, ...]]:
    """The choices of each block's units in order; those of the embedding are the first block's too, as it needs them,
    and the head's nobody's."""
    found: list[list[Choice]] = [[] for _ in range(layers)]
    for unit in supernet.spec.units:
        if unit.role != HEAD:
            found[unit.layer or 0].append(subnet[unit.name])
    return [tuple(choices) for choices in found]


def _alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many blocks the two begin alike with."""
    differing = (depth for depth, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    return next(differing, len(one))


@contextmanager
def _kept(layers: Sequence[nn.Module], depths: set[int], states: dict[int, Any]) -> Iterator[None]:
    """Within, what is computed up to these `depths` is kept in `states`."""

    def keep(depth: int) -> Callable[..., None]:
        return lambda module, args, output: states.__setitem__(depth, output)

    with removed_after([layers[depth - 1].register_forward_hook(keep(depth)) for depth in depths]):
        yield
