"""Every adapter on every grid it folds into: starts as the identity, trains nothing but itself, and deploys what it
computed."""

from __future__ import annotations

import pytest
import torch

from supernet.adapters import ADAPTERS, Adapter
from supernet.adapters.base import frozen_product
from supernet.formats import FORMATS
from supernet.grids import QuantizedWeight
from supernet.quantizers import RTN
from supernet.space import Choice

PAIRS = [
    (name, grid) for name, adapter in ADAPTERS.items() for grid, kind in FORMATS.items()
    if adapter.deploys in (*kind.folds, "side")
]  # fmt: skip
pytestmark = pytest.mark.parametrize(("name", "grid"), PAIRS)


def weight_at(bits: int, grid: str) -> QuantizedWeight:
    choice = Choice(bits, 16 if FORMATS[grid].block == 1 else FORMATS[grid].group_size(bits), grid)
    weight = torch.randn(24, columns(grid), generator=torch.Generator().manual_seed(1))
    return RTN().quantize(weight, [choice])[choice]


def columns(grid: str) -> int:
    return max(64, FORMATS[grid].block)


def inputs(grid: str) -> torch.Tensor:
    return torch.randn(2, 5, columns(grid), generator=torch.Generator().manual_seed(5))


def adapter_of(name: str, weight: QuantizedWeight, moved: bool = False) -> Adapter:
    adapter = ADAPTERS[name](weight, torch.Generator().manual_seed(2))
    if moved:
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.05)
    return adapter


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_starts_as_the_identity(name: str, grid: str, bits: int) -> None:
    if bits not in FORMATS[grid].widths:
        pytest.skip("a width that the grid has not")
    weight, x = weight_at(bits, grid), inputs(grid)
    assert torch.equal(adapter_of(name, weight)(x, weight), frozen_product(x, weight))


def test_forward_multiplies_by_the_effective_matrix(name: str, grid: str) -> None:
    weight, x = weight_at(3, grid), inputs(grid)
    adapter = adapter_of(name, weight, moved=True)
    assert torch.allclose(adapter(x, weight), x @ adapter.effective(weight).T, atol=1e-4)


def test_gradients_are_those_of_the_dense_computation(name: str, grid: str) -> None:
    """The product makes its weights again for the backward pass: it must agree with what autograd alone finds."""
    weight = weight_at(3, grid)
    adapter = adapter_of(name, weight, moved=True)
    x = inputs(grid).requires_grad_()
    target = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(6))
    (adapter(x, weight) * target).sum().backward()
    for key, parameter in adapter.named_parameters():
        if key in adapter.straight_through:
            continue
        step = 8.0 if key == "delta" else 1e-3  # the product is linear in it, up to the rounding of scales
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4))
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * step)
                sides.append((x @ adapter.effective(weight).T * target).sum().item())
                parameter.add_(direction, alpha=-sign * step)
        slope = (parameter.grad * direction).sum().item()
        coarse = FORMATS[grid].block > 1  # scales are whole numbers times one of them
        assert slope == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=6e-2 if coarse else 2e-2, abs=1e-2)
    assert torch.allclose(x.grad, target @ adapter.effective(weight), atol=1e-4)


def test_folding_computes_the_same_and_keeps_what_it_says(name: str, grid: str) -> None:
    weight = weight_at(3, grid)
    adapter = adapter_of(name, weight, moved=True)
    folded = adapter.fold(weight)
    if adapter.deploys == "side":
        assert folded is weight
        assert adapter.low_rank() is not None
        return
    assert torch.equal(folded.dequantize(), adapter.effective(weight))
    assert not folded.scale.requires_grad
    assert adapter.deploys == "codes" or torch.equal(folded.codes, weight.codes)
    assert (adapter.deploys == "zeros") == folded.zero.is_floating_point()
    assert adapter.deploys == "zeros" or torch.equal(folded.zero, weight.zero)


def test_what_is_trained_is_what_is_stored(name: str, grid: str) -> None:
    """Bit for bit, also where scales change their sign."""
    weight, x = weight_at(3, grid), inputs(grid)
    adapter = adapter_of(name, weight)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        adapter(x, weight).square().mean().backward()
        optimizer.step()
    if adapter.deploys in ("scales", "codes"):
        with torch.no_grad():
            adapter.delta[:2] = -10
        folded = adapter.fold(weight)
        assert (folded.scale[:2] * weight.scale[:2] < 0).all()
        assert torch.equal(adapter(x, weight), frozen_product(x, folded))
        assert not torch.equal(folded.scale[2:], weight.scale[2:])
        assert grid != "sym" or torch.equal(folded.scale, folded.scale.half().float())
        for part, tensor in folded.parts.items():
            assert tensor.dtype == weight.parts[part].dtype
            assert tensor.shape == weight.parts[part].shape


def test_the_same_seed_makes_the_same_adapter(name: str, grid: str) -> None:
    weight = weight_at(4, grid)
    one, two = (adapter_of(name, weight).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
