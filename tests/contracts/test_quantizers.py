"""Every quantizer on every grid: codes on it, less error with more bits, and the reasons it refuses."""

from __future__ import annotations

import pytest
import torch

from supernet.formats import FORMATS
from supernet.grids import GRIDS, Grid
from supernet.quantizers import GPTQ, QUANTIZERS, RTN, YAQA, Quantizer
from supernet.quantizers.wave import LEAST
from supernet.refiners import Learned
from supernet.space import Choice

MEMBERS: dict[str, Quantizer] = {name: member() for name, member in QUANTIZERS.items()} | {"clipped": RTN(clip=True)}
BITS = (2, 3, 4, 8)
ON_GRIDS = pytest.mark.parametrize("grid", GRIDS)


FREE = [name for name, format in FORMATS.items() if format.block == 1]
ON_FREE_GRIDS = pytest.mark.parametrize("grid", FREE)


def choices(grid: str) -> list[Choice]:
    if grid in FREE:
        return [Choice(bits, 16, grid) for bits in BITS]
    return [Choice(bits, FORMATS[grid].group_size(bits), grid) for bits in FORMATS[grid].widths]


def problem(grid: str = "int") -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    columns = max(64, 2 * FORMATS[grid].block)
    inputs = torch.randn(8 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return torch.randn(24, columns, generator=generator), inputs.T @ inputs


def output_error(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    change = quantized - weight
    return (change @ hessian * change).sum().item()


def test_codes_that_are_not_learned_are_those_of_gptq() -> None:
    """From 5 to 6 bits; 8 bits lose nothing either way, and narrower ones are learned from where they are nearest."""
    weight, hessian = problem()
    asked = [Choice(bits, 16) for bits in (2, 4, 5, 6, 8)]
    found = Learned.begins.quantize(weight, asked, hessian.clone())
    assert list(found) == asked and Learned.begins.needs_hessian
    for choice in asked:
        member = GPTQ() if choice.bits in (5, 6) else RTN(clip=True)
        assert torch.equal(found[choice].codes, member.quantize(weight, [choice], hessian.clone())[choice].codes)


@ON_GRIDS
@pytest.mark.parametrize("name", MEMBERS)
def test_more_bits_lose_less(name: str, grid: str) -> None:
    weight, hessian = problem(grid)
    found = MEMBERS[name].quantize(weight, choices(grid), hessian)
    assert list(found) == choices(grid)
    assert all(weight.choice == choice and weight.grid is GRIDS[grid] for choice, weight in found.items())
    restored = [weight.dequantize() for weight in found.values()]
    errors = [output_error(weight, matrix, hessian) for matrix in restored]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


MIXES = ([*(choice for grid in FREE for choice in choices(grid)), Choice(4, 32), Choice(4, 32, "sym")], choices("k"))


@pytest.mark.parametrize("asked", MIXES, ids=("of several grids", "k"))
@pytest.mark.parametrize("name", MEMBERS)
def test_a_choice_does_not_depend_on_the_others(name: str, asked: list[Choice]) -> None:
    weight, hessian = problem(asked[-1].grid)
    together = MEMBERS[name].quantize(weight, asked, hessian)
    assert list(together) == asked
    for choice in asked:
        alone = MEMBERS[name].quantize(weight, [choice], hessian)[choice]
        assert torch.equal(alone.codes, together[choice].codes)
        assert torch.allclose(alone.scale, together[choice].scale, rtol=1e-6)


@ON_FREE_GRIDS
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


@pytest.mark.parametrize(
    "choice", [*(Choice(3, size, grid) for grid in FREE for size in (16, 32, 64)), *choices("k")], ids=str
)
def test_gptq_loses_less_than_rounding(choice: Choice) -> None:
    """On correlated inputs, also where a group, or a block of groups, is wider than the columns solved at once."""
    weight, hessian = problem(choice.grid)
    rounded = RTN().quantize(weight, [choice])[choice].dequantize()
    solved = GPTQ(clip=False).quantize(weight, [choice], hessian)[choice].dequantize()
    most = 0.6 if choice.bits > 2 else 0.7
    assert output_error(weight, solved, hessian) < most * output_error(weight, rounded, hessian)


@ON_GRIDS
def test_gptq_without_correlation_is_rounding(grid: str) -> None:
    weight, _ = problem(grid)
    choice = next(choice for choice in choices(grid) if choice.bits == 4)
    solved = GPTQ(clip=False).quantize(weight, [choice], torch.eye(weight.shape[1]))[choice]
    assert torch.equal(solved.codes, RTN().quantize(weight, [choice])[choice].codes)


@pytest.mark.parametrize("choice", [choice for grid in GRIDS if grid not in FREE for choice in choices(grid)], ids=str)
def test_gptq_finds_a_group_of_a_block_again_when_it_is_reached(
    choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of the columns before have moved its weights by then. What the block shares stays, so it holds exactly."""
    weight, hessian = problem(choice.grid)
    kind, grid = type(GRIDS[choice.grid]), GRIDS[choice.grid]
    held: list[torch.Tensor] = []

    def packed(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, *more: object) -> object:
        found = pack(codes, scale, zero, *more)
        held.extend(((found.scale - scale).abs().max() / scale.abs().max(), (found.zero - zero).abs().max()))
        return found

    pack = grid.pack
    monkeypatch.setattr(grid, "pack", packed, raising=False)
    again = GPTQ().quantize(weight, [choice], hessian.clone())[choice].dequantize()
    assert max(held) < 1e-4
    monkeypatch.setattr(kind, "again", Grid.again)
    settled = GPTQ().quantize(weight, [choice], hessian.clone())[choice].dequantize()
    assert output_error(weight, again, hessian) < 0.99 * output_error(weight, settled, hessian)


@pytest.mark.parametrize("choice", [choice for grid in GRIDS for choice in choices(grid)], ids=str)
def test_gptq_says_what_it_rounded(choice: Choice) -> None:
    weight, hessian = problem(choice.grid)
    found, moved = GPTQ().solve(weight, [choice], hessian)[choice]
    assert torch.equal(moved[:, 0], weight[:, 0])
    assert not torch.allclose(moved[:, -1], weight[:, -1])
    scale, zero = (part.float().repeat_interleave(choice.group_size, 1) for part in (found.scale, found.zero))
    nearest = found.grid.encode(moved, scale, zero, choice.bits)
    assert torch.equal(nearest.to(torch.uint8), found.grid.codes(found))


def of_outputs(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    grads = torch.randn(8 * rows, rows, generator=generator) @ torch.randn(rows, rows, generator=generator)
    return grads.T @ grads


def tall(grid: str, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    weight, hessian = problem(grid)
    return torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(2)), hessian


@ON_GRIDS
def test_rows_whose_outputs_have_nothing_to_do_with_each_other_are_solved_as_without(grid: str) -> None:
    weight, hessian = tall(grid, 3 * LEAST - 5)
    some = choices(grid)[:2]
    alone = GPTQ().solve(weight, some, hessian)
    outputs = torch.diag(torch.linspace(0, 2, len(weight)))  # one of them is never looked at
    together = YAQA().solve(weight, some, hessian, outputs)
    assert list(together) == list(alone)
    for choice, (found, moved) in alone.items():
        assert torch.equal(found.grid.codes(found), found.grid.codes(together[choice][0]))
        assert torch.allclose(found.scale, together[choice][0].scale, rtol=1e-4)
        assert torch.allclose(moved, together[choice][1], atol=1e-3)


@pytest.mark.parametrize("choice", [choice for grid in GRIDS for choice in choices(grid)], ids=str)
def test_errors_are_spread_over_rows_to_the_least_that_is_left(choice: Choice) -> None:
    """Of rows that are still to come: -H_later,later^-1 H_later,before times the errors before."""
    weight, hessian = tall(choice.grid, 2 * LEAST)
    outputs = of_outputs(len(weight))
    found, moved = YAQA().solve(weight, [choice], hessian, outputs)[choice]
    damped = outputs.double() + YAQA().damping * outputs.diagonal().mean() * torch.eye(len(weight))
    before, later = slice(LEAST), slice(LEAST, None)
    left = (weight - found.dequantize())[before].double()
    spread = weight[later] + torch.linalg.solve(damped[later, later], damped[later, before] @ left)
    assert torch.equal(moved[before, 0], weight[before, 0])
    limit = 2e-2 if choice.grid == "k" else 1e-3  # its shared numbers are rounded when all of a block is known
    assert torch.allclose(moved[later, 0].double(), spread[:, 0], atol=limit * weight.abs().max().item())


@ON_GRIDS
def test_a_hessian_of_the_outputs_leaves_less_of_their_error(grid: str) -> None:
    weight, hessian = tall(grid, 4 * LEAST)
    outputs = of_outputs(len(weight))
    for choice in choices(grid)[:2]:
        errors = []
        for given in (None, outputs):
            change = YAQA().solve(weight, [choice], hessian, given)[choice][0].dequantize() - weight
            errors.append(((outputs @ change @ hessian) * change).sum().item())
        assert errors[1] < 0.85 * errors[0], (choice, errors)


@ON_GRIDS
def test_gptq_survives_dead_and_repeated_inputs(grid: str) -> None:
    weight, hessian = problem(grid)
    hessian[:, 3] = hessian[3, :] = 0
    hessian[:, 16:32] = hessian[16:32, :] = 0  # a whole group
    hessian[:, 5], hessian[5, :] = hessian[:, 4], hessian[4, :]
    found = GPTQ().quantize(weight, choices(grid), hessian)
    assert all(torch.isfinite(value.dequantize()).all() for value in found.values())


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if member.needs_hessian])
def test_who_needs_a_hessian_asks_for_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"{type(MEMBERS[name]).__name__} needs the Hessian"):
        MEMBERS[name].quantize(torch.zeros(4, 64), choices("int"))
