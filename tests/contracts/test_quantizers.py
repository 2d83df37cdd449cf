"""Every quantizer: codes on the grid, less error with more bits, and the reasons it refuses."""

from __future__ import annotations

import pytest
import torch

from supernet.grids import IntegerGrid
from supernet.quantizers import GPTQ, QUANTIZERS, RTN, Quantizer
from supernet.space import Choice

MEMBERS: dict[str, Quantizer] = {name: member() for name, member in QUANTIZERS.items()} | {"clipped": RTN(clip=True)}
CHOICES = [Choice(bits, 16) for bits in (2, 3, 4, 8)]


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    return torch.randn(24, 64, generator=generator), inputs.T @ inputs


def output_error(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    change = quantized - weight
    return (change @ hessian * change).sum().item()


@pytest.mark.parametrize("name", MEMBERS)
def test_more_bits_lose_less(name: str) -> None:
    weight, hessian = problem()
    found = MEMBERS[name].quantize(weight, CHOICES, hessian)
    assert list(found) == CHOICES
    restored = [IntegerGrid().dequantize(found[choice], torch.float32) for choice in CHOICES]
    errors = [output_error(weight, matrix, hessian) for matrix in restored]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


@pytest.mark.parametrize("name", MEMBERS)
def test_a_choice_does_not_depend_on_the_others(name: str) -> None:
    weight, hessian = problem()
    together = MEMBERS[name].quantize(weight, CHOICES, hessian)
    for choice in CHOICES:
        alone = MEMBERS[name].quantize(weight, [choice], hessian)[choice]
        assert torch.equal(alone.codes, together[choice].codes)
        assert torch.allclose(alone.scale, together[choice].scale, rtol=1e-6)


@pytest.mark.parametrize("name", MEMBERS)
def test_weights_already_on_the_grid_come_back_exactly(name: str) -> None:
    grid, choice = IntegerGrid(), Choice(4, 16)
    weight, hessian = problem()
    first = grid.dequantize(RTN().quantize(weight, [choice])[choice], torch.float32)
    again = MEMBERS[name].quantize(first, [choice], hessian)[choice]
    assert torch.allclose(grid.dequantize(again, torch.float32), first, atol=1e-5)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_group_that_does_not_divide_is_refused_with_sizes_that_do(name: str) -> None:
    with pytest.raises(ValueError, match=r"group_size must divide in_features, got 48 and 64; use 16 or 32 or 64"):
        MEMBERS[name].quantize(torch.zeros(4, 64), [Choice(4, 48)], torch.eye(64))


@pytest.mark.parametrize("group_size", [16, 32, 64])
def test_gptq_loses_less_than_rounding(group_size: int) -> None:
    """On correlated inputs, also where a group is wider than the block of columns solved at once."""
    weight, hessian = problem()
    choice = Choice(3, group_size)
    grid = IntegerGrid()
    rounded = grid.dequantize(RTN().quantize(weight, [choice])[choice], torch.float32)
    solved = grid.dequantize(GPTQ(clip=False).quantize(weight, [choice], hessian)[choice], torch.float32)
    assert output_error(weight, solved, hessian) < 0.6 * output_error(weight, rounded, hessian)


def test_gptq_without_correlation_is_rounding() -> None:
    weight, _ = problem()
    choice = Choice(4, 16)
    solved = GPTQ(clip=False).quantize(weight, [choice], torch.eye(64))[choice]
    assert torch.equal(solved.codes, RTN().quantize(weight, [choice])[choice].codes)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_gptq_says_what_it_rounded(choice: Choice) -> None:
    weight, hessian = problem()
    found, moved = GPTQ().solve(weight, [choice], hessian)[choice]
    assert torch.equal(moved[:, 0], weight[:, 0])
    assert not torch.allclose(moved[:, -1], weight[:, -1])
    scale, zero = (part.float().repeat_interleave(choice.group_size, 1) for part in (found.scale, found.zero))
    nearest = IntegerGrid().encode(moved, scale, zero, choice.bits)
    assert torch.equal(nearest.to(torch.uint8), IntegerGrid().codes(found))


def test_gptq_survives_dead_and_repeated_inputs() -> None:
    weight, hessian = problem()
    hessian[:, 3] = hessian[3, :] = 0
    hessian[:, 5], hessian[5, :] = hessian[:, 4], hessian[4, :]
    found = GPTQ().quantize(weight, CHOICES, hessian)
    assert all(torch.isfinite(IntegerGrid().dequantize(value, torch.float32)).all() for value in found.values())


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if member.needs_hessian])
def test_who_needs_a_hessian_asks_for_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"{type(MEMBERS[name]).__name__} needs the Hessian"):
        MEMBERS[name].quantize(torch.zeros(4, 64), CHOICES)
