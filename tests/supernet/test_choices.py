"""What an embedding may be, beside linears of every set of bit-widths."""

from __future__ import annotations

from itertools import combinations

import pytest

from supernet.choices import make_space, table_bits
from supernet.model import spec_of_model
from tests.tiny import tiny_model


@pytest.mark.parametrize("bits", [some for n in (1, 2, 5) for some in combinations(range(2, 9), n)])
def test_a_table_is_4_or_8_bits_or_what_linears_are_between(bits: tuple[int, ...]) -> None:
    found = table_bits(bits)
    assert {4, 8} <= set(found) <= {4, 8, *bits}
    assert list(found) == sorted(found) and found[0] == 4 and found[-1] == 8
    assert set(bits) & {5, 6, 7} == set(found) & {5, 6, 7}


def test_a_space_offers_them_in_their_own_groups() -> None:
    spec = spec_of_model(tiny_model("llama"), "tiny")
    space = make_space(spec, (2, 5), {2: 32, 4: 16, 5: 32, 8: 16}, grid="sym")
    tables = [unit.name for unit in spec.units if unit.is_table]
    assert tables
    for name in tables:
        assert [str(choice) for choice in space[name]] == ["sym4g16", "sym5g32", "sym8g16"]
