"""Every grid: packing loses nothing, encoding is nearest, dequantizing is exact and differentiable."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet.grids import GRIDS, IntegerGrid, QuantizedWeight
from supernet.grids.packing import fields, pack, packed_bytes, unpack
from supernet.space import Choice

pytestmark = pytest.mark.parametrize("bits", range(1, 9))


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 5), count=st.integers(1, 70), seed=st.integers(0, 9))
def test_unpacking_gives_back_what_was_packed(bits: int, rows: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, count), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_bytes(count, bits))
    assert torch.equal(unpack(packed, bits, count), codes)


def test_no_bit_is_wasted_on_whole_bytes(bits: int) -> None:
    assert sum(fields(bits)) == bits
    assert packed_bytes(64, bits) == 8 * bits


def random_weight(grid: IntegerGrid, bits: int) -> tuple[torch.Tensor, torch.Tensor, QuantizedWeight]:
    weight = torch.randn(6, 4, 16, generator=torch.Generator().manual_seed(bits))
    scale, zero = grid.parameters(weight, bits)
    codes = grid.encode(weight, scale, zero, bits)
    stored = grid.pack(codes.flatten(1), scale.squeeze(-1), zero.squeeze(-1), Choice(bits, 16), 64)
    return weight, codes, stored


def test_ranges_are_clipped_for_what_counts(bits: int) -> None:
    """No range that is tried leaves less of the weighed error; with two levels clipping is felt."""
    grid = IntegerGrid()
    weight = random_weight(grid, bits)[0]
    importance = torch.rand(4, 16, generator=torch.Generator().manual_seed(bits)) ** 8

    def error(scale: torch.Tensor, zero: torch.Tensor) -> float:
        off = (grid.encode(weight, scale, zero, bits) - zero) * scale - weight
        return (off.square() * importance).sum().item()

    weighed = error(*grid.clipped(weight, bits, importance))
    assert weighed <= error(*grid.clipped(weight, bits, torch.ones_like(importance)))
    assert weighed <= error(*grid.parameters(weight, bits))
    assert bits > 2 or weighed < error(*grid.clipped(weight, bits, torch.ones_like(importance)))


@pytest.mark.parametrize("name", GRIDS)
def test_codes_are_the_nearest(name: str, bits: int) -> None:
    grid = GRIDS[name]
    weight, codes, stored = random_weight(grid, bits)
    levels = (torch.arange(2**bits) - stored.zero.unsqueeze(-1)) * stored.scale.unsqueeze(-1)
    distance = (weight.unsqueeze(-1) - levels.unsqueeze(-2)).abs()
    chosen = distance.gather(-1, codes.long().unsqueeze(-1)).squeeze(-1)
    assert torch.all(chosen <= distance.amin(-1) + 1e-5)


@pytest.mark.parametrize("name", GRIDS)
def test_dequantizing_is_code_less_zero_times_scale(name: str, bits: int) -> None:
    grid = GRIDS[name]
    _, codes, stored = random_weight(grid, bits)
    expected = (codes - stored.zero.unsqueeze(-1)) * stored.scale.unsqueeze(-1)
    assert torch.equal(grid.dequantize(stored, torch.float32), expected.flatten(1))
    again = grid.encode(expected, stored.scale.unsqueeze(-1), stored.zero.unsqueeze(-1), bits)
    assert torch.equal(again, codes)


@pytest.mark.parametrize("name", GRIDS)
def test_weights_are_differentiable_in_the_scale(name: str, bits: int) -> None:
    grid = GRIDS[name]
    _, _, stored = random_weight(grid, bits)
    scale = stored.scale.clone().requires_grad_()
    grid.dequantize(stored, torch.float32, scale).sum().backward()
    assert scale.grad is not None
    assert torch.allclose(scale.grad, grid.centered(stored, torch.float32).sum(-1))
