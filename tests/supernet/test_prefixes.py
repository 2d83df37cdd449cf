"""Blocks that subnets begin alike with are computed once, and make what each subnet makes by itself."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from supernet.adapters import RoutedLoRA
from supernet.blocks import decoder_layers
from supernet.model import hidden_states
from supernet.prefixes import hidden_of_each
from supernet.sharing import Shared
from supernet.space import Subnet
from tests.supernet.conftest import Made, make
from tests.tiny import windows

LAYERS = 4


def split(made: Made, low: int, high: int, depth: int) -> Subnet:
    """Blocks of `low` bits up to a depth, of `high` bits from there; the embedding of 8."""
    found = made.space.uniform(made.spec, 8)
    for unit in made.spec.units:
        if unit.layer is not None:
            found = found.replace(
                unit.name, made.space.uniform(made.spec, low if unit.layer < depth else high)[unit.name]
            )
    return found


def computed(made: Made, subnets: list[Subnet]) -> tuple[list[torch.Tensor], list[int]]:
    """What the heads read, and how often each block computed its feed-forward part."""
    counts: Counter[int] = Counter()
    hooks = [
        layer.mlp.register_forward_hook(lambda *args, number=number: counts.update([number]))
        for number, layer in enumerate(decoder_layers(made.supernet.model))
    ]
    found = hidden_of_each(made.supernet, subnets, windows(2, 16))
    for hook in hooks:
        hook.remove()
    return found, [counts[number] for number in range(LAYERS)]


def alone(made: Made, subnet: Subnet) -> torch.Tensor:
    made.supernet.activate(subnet)
    return hidden_states(made.supernet.model, windows(2, 16))


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
@torch.no_grad()
def test_each_subnet_is_as_by_itself(family: str) -> None:
    made = make(family, num_hidden_layers=LAYERS)
    subnets = [
        split(made, 4, 8, 2),
        split(made, 2, 8, 4),
        split(made, 4, 8, 3),
        split(made, 4, 2, 3),
        split(made, 4, 8, 2),
    ]
    subnets.append(subnets[0].replace(made.spec.units[0].name, made.space[made.spec.units[0].name][0]))
    found, counts = computed(made, subnets)
    for subnet, one in zip(subnets, found, strict=True):
        assert torch.equal(one, alone(made, subnet))
    # 4 4 8 8 twice, 4 4 4 8, 4 4 4 2, 2 2 2 2, and 4 4 8 8 behind another embedding
    assert counts == [3, 3, 4, 5]
    assert all("forward" not in vars(layer) for layer in decoder_layers(made.supernet.model))


@torch.no_grad()
def test_a_head_of_its_own_changes_no_block() -> None:
    made = make("qwen3", num_hidden_layers=LAYERS, tie_word_embeddings=False)
    head = next(unit.name for unit in made.spec.units if unit.role == "head")
    subnet = made.space.uniform(made.spec, 4)
    found, counts = computed(made, [subnet, *(subnet.replace(head, choice) for choice in made.space[head])])
    assert counts == [1] * LAYERS
    assert all(torch.equal(one, found[0]) for one in found)


@torch.no_grad()
def test_adapters_that_are_told_of_the_whole_subnet_share_nothing() -> None:
    made = make(num_hidden_layers=LAYERS)
    made.supernet.adapt(RoutedLoRA, (2, 3, 4), seed=0, sharing=Shared())
    generator = torch.Generator().manual_seed(1)
    for matrix in made.supernet.matrices.values():
        for parameter in matrix.adapters.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    subnets = [split(made, 4, 2, 2), split(made, 4, 2, 3)]
    found, counts = computed(made, subnets)
    assert counts == [2] * LAYERS
    assert all(torch.equal(one, alone(made, subnet)) for subnet, one in zip(subnets, found, strict=True))
