"""Every sampler: draws inside the space, the same for the same arguments."""

from __future__ import annotations

import random
from itertools import pairwise
from statistics import mean, pvariance

import pytest

from supernet.samplers import (
    SAMPLERS,
    Balanced,
    History,
    Neighbours,
    Planned,
    Sampler,
    Sandwich,
    Slimmable,
    Trained,
    Uniform,
    bits_of,
)
from supernet.samplers.balanced import mean_bits
from supernet.samplers.entropy import around, probabilities
from supernet.space import Choice, SearchSpace, Subnet

BITS = (2, 3, 4)
SPACE = SearchSpace.of(
    {f"layers.{i}": tuple(Choice(b, 64) for b in BITS) for i in range(120)} | {"embedding": (Choice(8, 64),)}
)
LARGEST, SMALLEST = (
    Subnet(tuple((unit, choices[end]) for unit, choices in SPACE)) for end in (-1, 0)
)  # fmt: skip
# Two units of different choices and one that has none to make: nothing may count on all units being alike.
UNEVEN = SearchSpace.of(
    {"a": (Choice(2, 64), Choice(3, 64)), "b": (Choice(3, 64), Choice(8, 64)), "c": (Choice(4, 64),)}
)


def past(steps: int, seed: int = 0) -> list[tuple[Trained, ...]]:
    draw = random.Random(seed)
    return [(Trained(draw.uniform(2, 4), draw.uniform(0.1, 5)),) for _ in range(steps)]


def run(sampler: Sampler, steps: int, seed: int = 0, space: SearchSpace = SPACE) -> list[Subnet]:
    """What a training of `steps` draws; losses are those of a model that learns nothing."""
    history: list[tuple[Trained, ...]] = []
    drawn: list[Subnet] = []
    for step in range(steps):
        subnets = sampler.sample(space, step, steps, seed, history)
        history.append(tuple(Trained(bits_of(subnet, space), 1.0) for subnet in subnets))
        drawn += subnets
    return drawn


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("history", [[], past(19)], ids=["no history", "history"])
def test_draws_inside_the_space_and_repeats(name: str, history: History) -> None:
    sampler, known = SAMPLERS[name](), list(history)
    for step in range(20):
        subnets = sampler.sample(SPACE, step, 20, 7, history)
        assert all(subnet in SPACE for subnet in subnets)
        assert subnets == SAMPLERS[name]().sample(SPACE, step, 20, 7, tuple(history))
    assert list(history) == known


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("history", [[], past(19)], ids=["no history", "history"])
def test_another_seed_draws_others_where_steps_differ_at_all(name: str, history: History) -> None:
    sampler = SAMPLERS[name]()
    one, other = ([sampler.sample(SPACE, step, 20, seed, history) for step in range(20)] for seed in (7, 8))
    assert one != other or len(set(one)) == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_says_whether_it_draws_several_and_each_once_the_largest_first(name: str) -> None:
    sampler = SAMPLERS[name]()
    for step in range(20):
        subnets = sampler.sample(SPACE, step, 20, 0, past(step))
        assert len(subnets) == len(set(subnets))
        assert (len(subnets) > 1) == sampler.several
        if sampler.several:
            assert subnets[0] == LARGEST


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_choice_of_every_unit_is_drawn(name: str) -> None:
    seen: dict[str, set[Choice]] = {unit: set() for unit, _ in SPACE}
    for subnet in run(SAMPLERS[name](), 200):
        for unit, choice in subnet:
            seen[unit].add(choice)
    assert all(seen[unit] == set(choices) for unit, choices in SPACE)


@pytest.mark.parametrize("name", SAMPLERS)
def test_units_may_differ_in_their_choices(name: str) -> None:
    drawn = run(SAMPLERS[name](), 40, space=UNEVEN)
    assert all(subnet in UNEVEN for subnet in drawn)
    assert {unit: {subnet[unit] for subnet in drawn} for unit, _ in UNEVEN} == {u: set(c) for u, c in UNEVEN}


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_open_subnet_is_drawn_and_once(name: str) -> None:
    """What a schedule leaves open at first."""
    only = SearchSpace(tuple((unit, choices[-1:]) for unit, choices in SPACE))
    assert SAMPLERS[name]().sample(only, 0, 20, 0, ()) == (LARGEST,)
    assert SAMPLERS[name]().sample(only, 9, 20, 0, past(9)) == (LARGEST,)


def test_bits_are_those_of_the_units_that_have_a_choice() -> None:
    subnet = SMALLEST.replace("layers.7", Choice(4, 64))
    assert bits_of(subnet, SPACE) == pytest.approx(2 + 2 / 120)
    assert bits_of(Subnet.of({"a": Choice(3, 64), "b": Choice(8, 64), "c": Choice(4, 64)}), UNEVEN) == 5.5
    assert bits_of(Subnet.of({"c": Choice(4, 64)}), SearchSpace.of({"c": (Choice(4, 64),)})) == 4


def test_uniform_sampling_misses_the_ends_and_balanced_reaches_them() -> None:
    uniform = [bits_of(subnet, SPACE) for subnet in run(Uniform(), 100)]
    balanced = [bits_of(subnet, SPACE) for subnet in run(Balanced(), 100)]
    assert max(abs(m - 3) for m in uniform) < 0.4  # sd of the mean: 0.82 / sqrt(120) = 0.075
    assert min(balanced) == 2
    assert max(balanced) == 4


def test_a_sandwich_is_the_ends_and_two_random_subnets() -> None:
    for step in range(20):
        largest, smallest, *between = Sandwich().sample(SPACE, step, 20, 0, ())
        assert (largest, smallest) == (LARGEST, SMALLEST)
        assert len(between) == 2
        assert all(2.6 < bits_of(subnet, SPACE) < 3.4 for subnet in between)  # five standard deviations


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


def test_a_mean_that_a_unit_cannot_have_becomes_the_nearest_it_can() -> None:
    drawn = around(random.Random(0), UNEVEN, 2.0)
    assert [choice.bits for _, choice in drawn] == [2, 3, 4]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_units_draw_around_the_mean_of_their_step(share: float) -> None:
    step = round(100 * share)
    drawn = [bits_of(*Balanced().sample(SPACE, step, 100, seed, ()), SPACE) for seed in range(30)]
    assert mean(drawn) == pytest.approx(mean_bits(step, 100, 2, 4), abs=0.06)


def test_neighbours_train_uniform_subnets_half_of_the_time_and_mix_two_widths_otherwise() -> None:
    drawn = run(Neighbours(), 400)
    kinds = [sorted({choice.bits for unit, choice in subnet if unit != "embedding"}) for subnet in drawn]
    uniform = [kind[0] for kind in kinds if len(kind) == 1]
    assert 0.4 < len(uniform) / len(drawn) < 0.65
    assert all(0.2 < uniform.count(bits) / len(uniform) < 0.5 for bits in BITS)
    assert all(kind in ([2, 3], [3, 4]) for kind in kinds if len(kind) > 1)


def test_slimmable_trains_every_uniform_subnet_at_every_step() -> None:
    for step in range(3):
        subnets = Slimmable().sample(SPACE, step, 3, 0, ())
        widths = [{choice.bits for unit, choice in subnet if unit != "embedding"} for subnet in subnets]
        assert widths == [{4}, {3}, {2}]
        assert all(subnet["embedding"].bits == 8 for subnet in subnets)


NAMED = SearchSpace.of(
    {
        f"layers.{layer}.{role}": tuple(Choice(b, 64) for b in BITS)
        for layer in range(30)
        for role in ("qkv", "o_proj", "gate_up", "down_proj")
    }
    | {"embedding": (Choice(8, 64),)}
)


def mixtures(count: int) -> list[list[int]]:
    """The bits of the units of each step's mixture, in the model's order, where it is no uniform subnet."""
    found = []
    for step in range(count):
        *uniform, last = Planned().sample(NAMED, step, count, 0, ())
        if len(uniform) == len(BITS):
            found.append([choice.bits for unit, choice in last if unit != "embedding"])
    return found


def test_planned_trains_every_uniform_subnet_and_a_mixture() -> None:
    for step in range(20):
        widths = [{c.bits for u, c in s if u != "embedding"} for s in Planned().sample(NAMED, step, 20, 0, ())]
        assert widths[:3] == [{4}, {3}, {2}]
        assert len(widths) <= 4
    assert len(mixtures(100)) > 90


def test_half_of_the_planned_mixtures_are_split_at_a_depth_the_larger_behind() -> None:
    found = mixtures(200)
    splits = [bits for bits in found if bits == sorted(bits)]
    assert 0.4 < len(splits) / len(found) < 0.6
    assert all(set(bits) in ({2, 3}, {3, 4}) for bits in splits)
    means = [mean(bits) for bits in found]
    assert min(means) < 2.3 and max(means) > 3.7 and 2.8 < mean(means) < 3.2


def test_the_other_planned_mixtures_order_units_by_role_and_depth() -> None:
    """Within a role they differ less than all units do, and next to each other in depth less still."""
    others = [bits for bits in mixtures(200) if bits != sorted(bits)]
    assert {len(set(bits)) for bits in others} == {2, 3}
    apart, within, next_to = [], [], []
    for bits in others:
        layers = [bits[start : start + 4] for start in range(0, len(bits), 4)]
        spread = pvariance(bits)
        roles = list(zip(*layers, strict=True))
        within.append(mean(pvariance(role) for role in roles) / spread)
        next_to.append(mean((a - b) ** 2 / 2 for role in roles for a, b in pairwise(role)) / spread)
        apart.append(mean((random.Random(0).choice(bits) - b) ** 2 for b in bits) / spread)
    assert mean(next_to) < mean(within) < 0.8 < mean(apart)
