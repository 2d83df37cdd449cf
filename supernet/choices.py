"""What each unit of a supernet may be: its bit-widths, fewer of them for tables, and the channels of pruned blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from records.errors import InputError
from supernet.space import Choice, SearchSpace
from supernet.spec import ModelSpec, UnitSpec

CHANNELS = 64  # a pruned block keeps a multiple: products run in tiles
TABLE_BITS = (4, 8)  # what every embedding and head may be: below 4 bits a vocabulary falls apart, and runtimes refuse


def table_bits(bits: Sequence[int]) -> tuple[int, ...]:
    """What an embedding or a head may be where linears may be `bits`: what lies between comes with theirs."""
    between = (b for b in bits if TABLE_BITS[0] < b < TABLE_BITS[-1])
    return tuple(sorted({*TABLE_BITS, *between}))


def make_space(
    spec: ModelSpec, bits: Sequence[int], group_size: int | Mapping[int, int], prune: Sequence[float] = (),
    grid: str = "int",
) -> SearchSpace:  # fmt: skip
    """Every linear at `bits`, the embedding and the head at `table_bits` of them, all on this grid and in groups of
    `group_size`, which may be given by bits.

    `prune` are the shares of its channels that a feed-forward block may keep, beside all of them; 0 leaves none.
    """
    of_tables = table_bits(bits)
    sizes = {b: group_size if isinstance(group_size, int) else group_size[b] for b in {*bits, *of_tables}}
    options = {
        u.name: tuple(Choice(b, sizes[b], grid) for b in (of_tables if u.is_table else bits)) for u in spec.units
    }
    _check_groups(spec, options)
    if not prune:
        return SearchSpace.of(options)
    if not spec.feed_forwards:
        raise InputError(f"{spec.architecture} has no feed-forward block that bitfleet can prune; train without prune")
    for pair in spec.feed_forwards:
        kept = kept_channels(pair[1], prune, math.lcm(*(sizes[b] for b in bits)))
        for unit in pair:
            whole = options[unit.name]
            options[unit.name] += tuple(replace(c, kept=k) for k in kept for c in (whole if k else whole[:1]))
    return SearchSpace.of(options, tuple((maker.name, reader.name) for maker, reader in spec.feed_forwards))


def _check_groups(spec: ModelSpec, options: Mapping[str, Sequence[Choice]]) -> None:
    pairs = ((choice, linear) for unit in spec.units for choice in options[unit.name] for linear in unit.linears)
    for choice, linear in pairs:
        if linear.in_features % choice.group_size:
            widths = {lin.in_features for u in spec.units for lin in u.linears}
            fit = [g for g in (16, 32, 64, 128, 256) if all(width % g == 0 for width in widths)]
            hint = f"use {', '.join(map(str, fit))}" if fit else "no power of two from 16 up divides every matrix"
            got = f"{choice.group_size} and {linear.in_features}"
            raise InputError(f"group_size must divide in_features, got {got}; {hint}")


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
