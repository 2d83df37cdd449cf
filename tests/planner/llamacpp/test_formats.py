"""Which type a choice becomes, checked against what every code and zero of it needs."""

from __future__ import annotations

import pytest

from planner.runtimes.llamacpp.formats import (
    Q2_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    TYPES,
    TensorType,
    refusal,
    type_of,
)  # fmt: skip
from records.errors import InputError
from supernet.formats import FORMATS
from supernet.space import Choice

# The whole numbers that multiply the scale in each type; a type with a minimum takes any zero.
NUMBERS = {"Q2_0": range(-1, 3), "Q4_0": range(-8, 8), "Q5_0": range(-16, 16), "Q8_0": range(-128, 128)}
CODES = {"Q4_1": 16, "Q5_1": 32}


def test_names_and_sizes_are_those_of_the_gguf_package() -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for name, kind in TYPES.items():
        if kind is Q2_0:  # newer than the package
            assert (kind.number, kind.block, kind.block_bytes) == (42, 64, 18) and kind.bits_per_weight == 2.25
        else:
            theirs = GGMLQuantizationType[name]
            assert (int(theirs), *GGML_QUANT_SIZES[theirs]) == (kind.number, kind.block, kind.block_bytes)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_type_of_a_symmetric_choice_is_the_smallest_that_holds_its_numbers(bits: int, group: int) -> None:
    choice = Choice(bits, group, "sym")
    needed = {code - 2 ** (bits - 1) for code in range(2**bits)}
    assert type_of(choice) == smallest(needed, group)


@pytest.mark.parametrize(
    ("bits", "kind"), [(1, Q4_0), (2, Q4_0), (3, Q4_0), (4, Q4_1), (5, Q5_1), (6, Q8_0), (7, Q8_0)]
)
def test_the_type_of_a_choice_with_zeros_holds_every_code_and_zero(bits: int, kind: TensorType) -> None:
    choice = Choice(bits, 64)
    assert type_of(choice) == kind
    if kind.name in CODES:
        assert 2**bits <= CODES[kind.name]
    else:
        assert {code - zero for code in range(2**bits) for zero in range(2**bits)} <= set(NUMBERS[kind.name])


@pytest.mark.parametrize(("bits", "kind"), [(2, "Q2_K"), (3, "Q3_K"), (4, "Q4_K"), (5, "Q5_K"), (6, "Q6_K")])
def test_the_type_of_a_choice_in_super_blocks_has_its_groups(bits: int, kind: str) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    choice = Choice(bits, FORMATS["k"].group_size(bits), "k")
    assert type_of(choice).name == kind
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    numbers = {2: 4, 3: 6, 4: 6, 5: 6, 6: 8}[bits]
    each = 2 if bits in choice.format.moving_zeros else 1
    assert size * 8 == block * bits + each * (16 + numbers * block // choice.group_size)


def smallest(needed: set[int], group: int) -> TensorType:
    """A scale of the other sign turns the numbers around."""
    for kind in (Q2_0, Q4_0, Q5_0, Q8_0):
        held = set(NUMBERS[kind.name])
        if group % kind.block == 0 and (needed <= held or {-number for number in needed} <= held):
            return kind
    raise AssertionError(needed)


@pytest.mark.parametrize(
    ("choice", "row", "says"),
    [
        (Choice(8, 64), 64, "sym8g32"),
        (Choice(4, 16, "sym"), 64, "multiples of 32, got 16"),
        (Choice(4, 48), 96, "got 48"),
        (Choice(4, 32, "other"), 64, "got other"),
        (Choice(2, 64, "sym"), 96, "got 64 and 96; use sym3g32"),
        (Choice(4, 32, "sym"), 80, "in multiples of 32 weights, got 80, so no format fits"),
        (Choice(4, 16, "sym"), 80, "in multiples of 32 weights, got 80, so no format fits"),
        (Choice(4, 32, "k"), 576, "Q4_K has blocks of 256 weights, got rows of 576; use sym2g64"),
        (Choice(4, 16, "k"), 512, "no K type for k4g16; use k2g16, k3g16, k4g32, k5g32, k6g16"),
        (Choice(8, 32, "k"), 512, "no K type for k8g32"),
    ],
)
def test_what_cannot_be_held_is_refused_with_what_can(choice: Choice, row: int, says: str) -> None:
    found = refusal(choice, row)
    assert found is not None and says in found


def test_what_a_refusal_names_is_held() -> None:
    for row, choice in (
        (64, Choice(8, 64)), (96, Choice(2, 64, "sym")), (576, Choice(2, 16, "k")), (512, Choice(4, 16, "k"))
    ):  # fmt: skip
        found = refusal(choice, row)
        assert found is not None
        for text in found.rpartition("use ")[2].split(", "):
            assert refusal(Choice.parse(text), row) is None


def test_rows_are_whole_blocks() -> None:
    assert Q4_0.row_bytes(576) == 18 * 18
    with pytest.raises(ValueError, match="64"):
        Q2_0.row_bytes(96)
    with pytest.raises(InputError):
        type_of(Choice(8, 32))
