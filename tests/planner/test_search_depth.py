"""A split at a depth: the larger bit-width from there on, and as much of it as fits."""

from __future__ import annotations

from itertools import pairwise

import pytest

from planner.search.base import Problem, Resource
from planner.search.depth import around, split
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import LinearSpec, ModelSpec, UnitSpec

LAYERS = 3


def problem(limit: float) -> tuple[Problem, ModelSpec]:
    """Units of 1, 2 and 3 times 64 weights, and a table that no budget asks for."""
    units = [UnitSpec("embed", "embedding", None, (LinearSpec("embed", 64, 64),))]
    for layer in range(LAYERS):
        for size, role in enumerate(("qkv", "o", "down"), start=1):
            name = f"{layer}.{role}"
            units.append(UnitSpec(name, role, layer, (LinearSpec(name, size, 64),)))
    spec = ModelSpec("m", "L", LAYERS, 64, 1, 1, 64, 64, 128, True, 0, tuple(units))
    choices = tuple(Choice(bits, 64) for bits in (2, 4, 8))
    space = SearchSpace.of({u.name: choices for u in units})
    sizes = {u.name: {c: 0 if u.is_table else u.weights * c.bits // 8 for c in choices} for u in units}
    losses = {u.name: dict.fromkeys(choices, 0.0) for u in units}
    return Problem(space, losses, (Resource("codes", "bytes", limit, 0, sizes),)), spec


def base(spec: ModelSpec) -> Subnet:
    return Subnet.of({u.name: Choice(4 if u.is_table else 8, 64) for u in spec.units})


WEIGHTS = 64 * 6 * LAYERS


@pytest.mark.parametrize("limit", [WEIGHTS / 4, WEIGHTS / 4 + 1, WEIGHTS * 0.3, WEIGHTS * 0.4, WEIGHTS / 2, WEIGHTS])
def test_bits_rise_once_and_no_unit_more_fits(limit: float) -> None:
    made, spec = problem(limit)
    found = split(made, spec, 2, 4, base(spec))
    assert found is not None and made.feasible(found)
    assert found["embed"] == Choice(4, 64)
    names = [u.name for u in spec.units if not u.is_table]
    bits = [found[name].bits for name in names]
    assert set(bits) <= {2, 4} and all(a <= b for a, b in pairwise(bits))
    if 2 in bits:
        last = names[bits.count(2) - 1]
        assert not made.feasible(found.replace(last, Choice(4, 64)))
    else:
        assert limit >= WEIGHTS / 2


def test_where_the_smaller_bits_do_not_fit_there_is_none() -> None:
    made, spec = problem(WEIGHTS / 4 - 1)
    assert split(made, spec, 2, 4, base(spec)) is None


@pytest.mark.parametrize(
    ("mean", "found"), [(2, (2, 2)), (2.5, (2, 4)), (4.0, (4, 4)), (7.9, (4, 8)), (1.9, None), (8.1, None)]
)
def test_the_bit_widths_around_a_mean(mean: float, found: tuple[int, int] | None) -> None:
    assert around((2, 4, 8), mean) == found
    assert around((), mean) is None
