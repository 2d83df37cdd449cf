"""Every quantizer on every grid: codes on it, less error with more bits, and the reasons it refuses."""

from __future__ import annotations

import pytest
import torch

from supernet.grids import GRIDS
from supernet.quantizers import GPTQ, QUANTIZERS, RTN, Quantizer
from supernet.space import Choice

MEMBERS: dict[str, Quantizer] = {name: member() for name, member in QUANTIZERS.items()} | {"clipped": RTN(clip=True)}
BITS = (2, 3, 4, 8)
ON_GRIDS = pytest.mark.parametrize("grid", GRIDS)


def choices(grid: str) -> list[Choice]:
    return [Choice(bits, 16, grid) for bits in BITS]


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    return torch.randn(24, 64, generator=generator), inputs.T @ inputs


def output_error(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    change = quantized - weight
    return (change @ hessian * change).sum().item()


@ON_GRIDS
@pytest.mark.parametrize("name", MEMBERS)
def test_more_bits_lose_less(name: str, grid: str) -> None:
    weight, hessian = problem()
    found = MEMBERS[name].quantize(weight, choices(grid), hessian)
    assert list(found) == choices(grid)
    assert all(weight.choice == choice and weight.grid is GRIDS[grid] for choice, weight in found.items())
    restored = [weight.dequantize() for weight in found.values()]
    errors = [output_error(weight, matrix, hessian) for matrix in restored]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


@pytest.mark.parametrize("name", MEMBERS)
def test_a_choice_does_not_depend_on_the_others(name: str) -> None:
    weight, hessian = problem()
    asked = [*(choice for grid in GRIDS for choice in choices(grid)), Choice(4, 32), Choice(4, 32, "sym")]
    together = MEMBERS[name].quantize(weight, asked, hessian)
    assert list(together) == asked
    for choice in asked:
        alone = MEMBERS[name].quantize(weight, [choice], hessian)[choice]
        assert torch.equal(alone.codes, together[choice].codes)
        assert torch.allclose(alone.scale, together[choice].scale, rtol=1e-6)


@ON_GRIDS
@pytest.mark.parametrize("name", MEMBERS)
def test_weights_already_on_the_grid_come_back_exactly(name: str, grid: str) -> None:
    choice = Choice(4, 16, grid)
    weight, hessian = problem()
    first = RTN().quantize(weight, [choice])[choice].dequantize()
    again = MEMBERS[name].quantize(first, [choice], hessian)[choice]
    assert torch.allclose(again.dequantize(), first, atol=1e-5)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_group_that_does_not_divide_is_refused_with_sizes_that_do(name: str) -> None:
    with pytest.raises(ValueError, match=r"group_size must divide in_features, got 48 and 64; use 16 or 32 or 64"):
        MEMBERS[name].quantize(torch.zeros(4, 64), [Choice(4, 48)], torch.eye(64))


@ON_GRIDS
@pytest.mark.parametrize("group_size", [16, 32, 64])
def test_gptq_loses_less_than_rounding(group_size: int, grid: str) -> None:
    """On correlated inputs, also where a group is wider than the block of columns solved at once."""
    weight, hessian = problem()
    choice = Choice(3, group_size, grid)
    rounded = RTN().quantize(weight, [choice])[choice].dequantize()
    solved = GPTQ(clip=False).quantize(weight, [choice], hessian)[choice].dequantize()
    assert output_error(weight, solved, hessian) < 0.6 * output_error(weight, rounded, hessian)


@ON_GRIDS
def test_gptq_without_correlation_is_rounding(grid: str) -> None:
    weight, _ = problem()
    choice = Choice(4, 16, grid)
    solved = GPTQ(clip=False).quantize(weight, [choice], torch.eye(64))[choice]
    assert torch.equal(solved.codes, RTN().quantize(weight, [choice])[choice].codes)


@pytest.mark.parametrize("choice", [choice for grid in GRIDS for choice in choices(grid)], ids=str)
def test_gptq_says_what_it_rounded(choice: Choice) -> None:
    weight, hessian = problem()
    found, moved = GPTQ().solve(weight, [choice], hessian)[choice]
    assert torch.equal(moved[:, 0], weight[:, 0])
    assert not torch.allclose(moved[:, -1], weight[:, -1])
    scale, zero = (part.float().repeat_interleave(choice.group_size, 1) for part in (found.scale, found.zero))
    nearest = found.grid.encode(moved, scale, zero, choice.bits)
    assert torch.equal(nearest.to(torch.uint8), found.grid.codes(found))


@ON_GRIDS
def test_gptq_survives_dead_and_repeated_inputs(grid: str) -> None:
    weight, hessian = problem()
    hessian[:, 3] = hessian[3, :] = 0
    hessian[:, 16:32] = hessian[16:32, :] = 0  # a whole group
    hessian[:, 5], hessian[5, :] = hessian[:, 4], hessian[4, :]
    found = GPTQ().quantize(weight, choices(grid), hessian)
    assert all(torch.isfinite(value.dequantize()).all() for value in found.values())


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if member.needs_hessian])
def test_who_needs_a_hessian_asks_for_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"{type(MEMBERS[name]).__name__} needs the Hessian"):
        MEMBERS[name].quantize(torch.zeros(4, 64), choices("int"))
