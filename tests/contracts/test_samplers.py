"""Every sampler: draws inside the space, the same for the same seed and step."""

from __future__ import annotations

from statistics import mean

import pytest

from supernet.samplers import SAMPLERS, Balanced, Uniform
from supernet.samplers.balanced import mean_bits, probabilities
from supernet.space import Choice, SearchSpace, Subnet

BITS = (2, 3, 4)
SPACE = SearchSpace.of(
    {f"layers.{i}": tuple(Choice(b, 64) for b in BITS) for i in range(120)} | {"embedding": (Choice(8, 64),)}
)


def bits_of(subnet: Subnet) -> float:
    return mean(choice.bits for unit, choice in subnet if unit != "embedding")


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_inside_the_space_and_repeats(name: str) -> None:
    sampler = SAMPLERS[name]()
    for step in range(20):
        subnet = sampler.sample(SPACE, step, 20, 7)
        assert subnet in SPACE
        assert subnet == sampler.sample(SPACE, step, 20, 7)
    assert sampler.sample(SPACE, 3, 20, 7) != sampler.sample(SPACE, 3, 20, 8)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_choice_of_every_unit_is_drawn(name: str) -> None:
    sampler = SAMPLERS[name]()
    seen: dict[str, set[Choice]] = {unit: set() for unit, _ in SPACE}
    for step in range(200):
        for unit, choice in sampler.sample(SPACE, step, 200, 0):
            seen[unit].add(choice)
    assert all(seen[unit] == set(choices) for unit, choices in SPACE)


def test_uniform_sampling_misses_the_ends_and_balanced_reaches_them() -> None:
    uniform = [bits_of(Uniform().sample(SPACE, step, 100, 0)) for step in range(100)]
    balanced = [bits_of(Balanced().sample(SPACE, step, 100, 0)) for step in range(100)]
    assert max(abs(m - 3) for m in uniform) < 0.4  # sd of the mean: 0.82 / sqrt(120) = 0.075
    assert min(balanced) == 2
    assert max(balanced) == 4


def test_the_mean_follows_equation_5() -> None:
    assert [mean_bits(t, 100, 2, 4) for t in (0, 20, 40, 60, 80)] == [4, 3, 2, 3, 4]


@pytest.mark.parametrize("target", [2.0, 2.1, 2.5, 3.0, 3.7, 4.0])
def test_probabilities_have_the_mean_and_the_form(target: float) -> None:
    p = probabilities(BITS, target)
    assert sum(p) == pytest.approx(1)
    assert sum(b * q for b, q in zip(BITS, p, strict=True)) == pytest.approx(target, abs=1e-6)
    assert p[1] ** 2 == pytest.approx(p[0] * p[2], abs=1e-9)  # exponential in bits: the entropy is largest


def test_probabilities_at_two_and_a_half_bits_are_the_known_ones() -> None:
    assert probabilities(BITS, 2.5) == pytest.approx([0.616, 0.268, 0.116], abs=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_units_draw_around_the_mean_of_their_step(share: float) -> None:
    step = round(100 * share)
    drawn = [bits_of(Balanced().sample(SPACE, step, 100, seed)) for seed in range(30)]
    assert mean(drawn) == pytest.approx(mean_bits(step, 100, 2, 4), abs=0.06)
