"""What an embedding may be, beside linears of every set of bit-widths."""

from __future__ import annotations

from itertools import combinations

import pytest

from records.errors import InputError
from supernet.choices import make_space, table_bits
from supernet.model import spec_of_model
from supernet.recipe import Recipe
from tests.tiny import WIDE, tiny_model


@pytest.mark.parametrize("bits", [some for n in (1, 2, 5) for some in combinations(range(2, 9), n)])
def test_a_table_is_4_or_8_bits_or_what_linears_are_between(bits: tuple[int, ...]) -> None:
    found = table_bits(bits, "int")
    assert {4, 8} <= set(found) <= {4, 8, *bits}
    assert list(found) == sorted(found) and found[0] == 4 and found[-1] == 8
    assert set(bits) & {5, 6, 7} == set(found) & {5, 6, 7}


def test_a_table_has_the_widths_of_its_grid() -> None:
    assert table_bits((2, 3), "k") == (4, 6, 8)
    assert table_bits((2, 5), "k") == (4, 5, 6, 8)


def test_a_grid_that_ends_goes_on_with_another() -> None:
    spec = spec_of_model(tiny_model("llama", **WIDE), "tiny")
    recipe = Recipe(grid="k")
    space = recipe.space(spec)
    found = {unit.is_table: [str(choice) for choice in space[unit.name]] for unit in spec.units}
    assert found == {False: ["k2g16", "k3g16", "k4g32", "sym8g32"], True: ["k4g32", "k6g16", "sym8g32"]}
    uniform = space.uniform(spec, 3)
    assert {str(choice) for _, choice in uniform} == {"k3g16", "sym8g32"}


@pytest.mark.parametrize(("width", "says"), [(576, "use grid int or sym"), (48, "with a group size of 16 or 32")])
def test_rows_that_are_no_whole_blocks_are_refused_with_what_has_them(width: int, says: str) -> None:
    spec = spec_of_model(tiny_model("llama", hidden_size=width), "tiny")
    with pytest.raises(
        InputError, match=f"blocks of 256 weights, which must divide in_features, got {width}; .*{says}"
    ):
        Recipe(grid="k").space(spec)


def test_groups_of_blocks_are_not_chosen() -> None:
    with pytest.raises(InputError, match="grid k has group sizes of its own, got 64; leave the group size out"):
        Recipe(grid="k", group_size=64)
    with pytest.raises(InputError, match="grid sym at 2 and 4 bits; use sharing decoupled"):
        Recipe(grid="sym", bits=(2, 4), sharing="shared")


def test_a_space_offers_them_in_their_own_groups() -> None:
    spec = spec_of_model(tiny_model("llama"), "tiny")
    space = make_space(spec, (2, 5), {2: 32, 4: 16, 5: 32, 8: 16}, grid="sym")
    tables = [unit.name for unit in spec.units if unit.is_table]
    assert tables
    for name in tables:
        assert [str(choice) for choice in space[name]] == ["sym4g16", "sym5g32", "sym8g16"]
