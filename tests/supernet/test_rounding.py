"""Training inside the rounding: where it starts, what its gradient is, when codes move."""

from __future__ import annotations

import pytest
import torch

from supernet.adapters import Rounding
from supernet.grids import IntegerGrid, QuantizedWeight
from supernet.quantizers import GPTQ, RTN, Quantizer
from supernet.space import Choice

GRID = IntegerGrid()


def weights() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    return torch.randn(24, 64, generator=generator), inputs.T @ inputs


def made(bits: int, quantizer: Quantizer, **options: object) -> tuple:
    full, hessian = weights()
    choice = Choice(bits, 16)
    weight = quantizer.quantize(full, [choice], hessian)[choice]
    return weight, Rounding(weight, torch.Generator().manual_seed(1), full, **options)


def backward(weight: QuantizedWeight, adapter: Rounding) -> tuple[torch.Tensor, torch.Tensor]:
    """Leaves gradients; returns what an offset's must be, and where the clamp is open."""
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(3))
    target = torch.randn(7, 24, generator=torch.Generator().manual_seed(4))
    (adapter(x, weight) * target).sum().backward()
    offset = adapter.offset if adapter.full_rank else adapter.up @ adapter.down
    place = adapter.position + 0.5 + adapter.fine * offset.detach()
    inside = (place >= 0) & (place < 256)
    dense = (target.T @ x) * weight.scale.repeat_interleave(16, 1) * inside
    return dense, inside


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("margin", [0.0, 0.25, 0.499])
@pytest.mark.parametrize("quantizer", [RTN(), GPTQ()], ids=["rtn", "gptq"])
def test_it_starts_from_the_stored_codes(bits: int, margin: float, quantizer: Quantizer) -> None:
    weight, adapter = made(bits, quantizer, margin=margin)
    assert torch.equal(adapter.fold(weight).codes, weight.codes)
    assert torch.equal(adapter.fold(weight).scale, weight.scale)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("rank", [None, 4])
def test_training_in_bfloat16_sees_the_codes_that_are_folded(bits: int, rank: int | None) -> None:
    weight, adapter = made(bits, RTN(), rank=rank, margin=0.499)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter is not adapter.delta:
                parameter.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(2))
    rows = adapter(torch.eye(64, dtype=torch.bfloat16), weight).T
    folded = adapter.fold(weight)
    codes, zero = GRID.codes(folded).float(), folded.zero.float().repeat_interleave(16, 1)
    expected = (codes - zero).bfloat16() * folded.scale.bfloat16().repeat_interleave(16, 1)
    assert torch.equal(rows, expected)


def test_the_gradient_of_an_offset_is_that_of_its_code_where_the_clamp_is_open() -> None:
    weight, adapter = made(3, RTN(), rank=None, margin=0.499)
    with torch.no_grad():
        adapter.offset.uniform_(-3, 3, generator=torch.Generator().manual_seed(2))
    dense, inside = backward(weight, adapter)
    assert 0 < inside.float().mean() < 1
    assert torch.allclose(adapter.offset.grad, dense, atol=1e-4)


def test_low_rank_gradients_are_those_of_the_offset() -> None:
    weight, adapter = made(3, RTN(), rank=4)
    with torch.no_grad():
        adapter.up.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    dense, _ = backward(weight, adapter)
    assert torch.allclose(adapter.up.grad, dense @ adapter.down.T, atol=1e-3)
    assert torch.allclose(adapter.down.grad, adapter.up.T @ dense, atol=1e-3)


def test_an_offset_of_one_code_moves_the_code_by_one() -> None:
    weight, adapter = made(4, RTN(), rank=None, margin=0.25)
    with torch.no_grad():
        adapter.offset.fill_(1.0)
    codes, moved = GRID.codes(weight).int(), GRID.codes(adapter.fold(weight)).int()
    assert torch.equal(moved, (codes + 1).clamp(max=15))
