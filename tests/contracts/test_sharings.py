"""Every sharing: puts each choice in exactly one group, in order."""

from __future__ import annotations

from itertools import combinations

import pytest

from supernet.sharing import SHARINGS, Matched
from supernet.space import Choice

CHOICES = [Choice(bits, 64) for bits in (2, 3, 4)]


def agreement(*cosines: float) -> dict[tuple[Choice, Choice], float]:
    """Of (2, 3), (2, 4) and (3, 4) bits."""
    return dict(zip(combinations(CHOICES, 2), cosines, strict=True))


@pytest.mark.parametrize("name", SHARINGS)
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_every_choice_is_in_one_group(name: str, count: int) -> None:
    choices = CHOICES[:count]
    groups = SHARINGS[name]().groups(choices, agreement(0.1, 0.2, 0.9))
    assert sorted(choice for group in groups for choice in group) == choices
    assert all(group for group in groups)


@pytest.mark.parametrize(
    ("cosines", "groups"),
    [
        ((0.9, 0.8, 0.9), [(2, 3, 4)]),
        ((0.1, 0.1, 0.9), [(2,), (3, 4)]),
        ((0.9, 0.1, 0.1), [(2, 3), (4,)]),
        ((0.1, 0.0, 0.2), [(2,), (3,), (4,)]),
        ((-0.5, -0.9, -0.5), [(2,), (3,), (4,)]),
    ],
)
def test_those_that_agree_share(cosines: tuple[float, ...], groups: list[tuple[int, ...]]) -> None:
    found = Matched().groups(CHOICES, agreement(*cosines))
    assert sorted(tuple(choice.bits for choice in group) for group in found) == groups


def test_nearer_means_more_adapters() -> None:
    counts = [len(Matched(apart).groups(CHOICES, agreement(0.5, 0.2, 0.8))) for apart in (0.1, 0.3, 0.7)]
    assert counts == [3, 2, 1]
