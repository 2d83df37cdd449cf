"""What each unit of a supernet may be: its bit-widths, fewer of them for tables, and the channels of pruned blocks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from records.errors import InputError
from supernet.formats import FORMATS, grid_at
from supernet.space import Choice, SearchSpace
from supernet.spec import ModelSpec, UnitSpec

CHANNELS = 64  # a pruned block keeps a multiple: products run in tiles


def table_bits(bits: Sequence[int], grid: str) -> tuple[int, ...]:
    """What an embedding or a head may be where linears may be `bits`: what lies between comes with theirs."""
    every = FORMATS[grid].table_bits
    return tuple(sorted({*every, *(b for b in bits if every[0] < b < every[-1])}))


def make_space(
    spec: ModelSpec, bits: Sequence[int], group_size: int | Mapping[int, int], prune: Sequence[float] = (), *, grid: str
) -> SearchSpace:  # fmt: skip
    """Every linear at `bits`, the embedding and the head at `table_bits` of them, all on this grid and in groups of
    `group_size`, which may be given by bits; where the grid ends at fewer bits, on the one that goes on.

    `prune` are the shares of its channels that a feed-forward block may keep, beside all of them; 0 leaves none.
    """
    of_tables = table_bits(bits, grid)
    sizes = {b: group_size if isinstance(group_size, int) else group_size[b] for b in {*bits, *of_tables}}
    options = {
        u.name: tuple(Choice(b, sizes[b], grid_at(grid, b)) for b in (of_tables if u.is_table else bits))
        for u in spec.units
    }
    _check_groups(spec, options)
    if not prune:
        return SearchSpace.of(options)
    if not spec.feed_forwards:
        raise InputError(f"{spec.architecture} has no feed-forward block that bitfleet can prune; train without prune")
    for block in spec.feed_forwards:
        kept = kept_channels(block[-1], prune, math.lcm(FORMATS[grid].block, *(sizes[b] for b in bits)))
        for unit in block:
            whole = options[unit.name]
            options[unit.name] += tuple(replace(c, kept=k) for k in kept for c in (whole if k else whole[:1]))
    return SearchSpace.of(options, tuple(tuple(unit.name for unit in block) for block in spec.feed_forwards))


def _check_groups(spec: ModelSpec, options: Mapping[str, Sequence[Choice]]) -> None:
    pairs = ((choice, linear) for unit in spec.units for choice in options[unit.name] for linear in unit.linears)
    widths = {lin.in_features for u in spec.units for lin in u.linears}
    for choice, linear in pairs:
        if linear.in_features % choice.format.block:
            raise InputError(
                f"grid {choice.grid} has blocks of {choice.format.block} weights, which must divide in_features, got "
                f"{linear.in_features}; use {_without_blocks(widths)}"
            )
        if linear.in_features % choice.group_size:
            fit = [g for g in (16, 32, 64, 128, 256) if all(width % g == 0 for width in widths)]
            hint = f"use {', '.join(map(str, fit))}" if fit else "no power of two from 16 up divides every matrix"
            got = f"{choice.group_size} and {linear.in_features}"
            raise InputError(f"group_size must divide in_features, got {got}; {hint}")


def _without_blocks(widths: Collection[int]) -> str:
    """The grids that have rows of such widths, in their usual groups."""
    plain = {name: format for name, format in FORMATS.items() if format.block == 1}
    fit = [n for n, format in plain.items() if not any(w % g for w in widths for g in format.group_sizes.values())]
    return f"grid {' or '.join(fit)}" if fit else f"grid {' or '.join(plain)} with a group size of 16 or 32"


def kept_channels(unit: UnitSpec, prune: Sequence[float], group_size: int) -> tuple[int, ...]:
    """`prune` as numbers of channels: multiples of the group size and of `CHANNELS`, rounded down."""
    assert unit.channels is not None
    step = math.lcm(group_size, CHANNELS)
    found = {share: int(share * unit.channels.count) // step * step for share in prune}
    for share, kept in found.items():
        if share > 0 and kept == 0:
            raise InputError(
                f"a pruned block keeps a multiple of {step} channels, got {share:g} of {unit.channels.count}; "
                f"use shares from {step / unit.channels.count:.2g}, or 0"
            )
    return tuple(sorted(set(found.values())))
