"""Choices, subnets and the space they come from. Values only; nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, total_ordering
from itertools import product
from typing import Any

from records.errors import InputError
from records.reading import as_record
from supernet.formats import FORMATS, Format
from supernet.spec import ModelSpec

_CHOICE = re.compile(r"(?P<grid>[a-z_]+?)(?P<bits>\d)g(?P<group_size>\d{1,6})(?:k(?P<kept>\d{1,9}))?", re.ASCII)
_COUPLED = "coupled"  # in the JSON of a space, beside the names of units


@total_ordering
@dataclass(frozen=True)
class Choice:
    """What a unit may be. Written `int4g64`: the grid, the bits, the group size along in_features.

    A unit of a feed-forward block may keep only the first `kept` channels, written `int4g64k1024`; at 0 nothing is left
    of it, and its bits mean nothing. Fewer bits come first, then fewer channels; None, which keeps all, comes last.
    """

    bits: int
    group_size: int
    grid: str = "int"
    kept: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise InputError(f"bits must be from 1 to 8, got {self.bits}")
        if self.group_size < 1:
            raise InputError(f"group_size must be positive, got {self.group_size}")
        if self.kept is not None and (self.kept < 0 or self.kept % self.group_size):
            raise InputError(f"kept must be a multiple of the group size, got {self.kept} and {self.group_size}")

    def __lt__(self, other: Choice) -> bool:
        return self._rank < other._rank

    @property
    def _rank(self) -> tuple[int, int, str, float]:
        return self.bits, self.group_size, self.grid, float("inf") if self.kept is None else self.kept

    @property
    def format(self) -> Format:
        """The facts of its grid."""
        if self.grid not in FORMATS:
            raise InputError(f"a grid is one of {', '.join(FORMATS)}, got {self.grid!r:.80}")
        return FORMATS[self.grid]

    @property
    def whole(self) -> Choice:
        """The same with every channel: what is stored, and a pruned choice reads a part of it."""
        return self if self.kept is None else replace(self, kept=None)

    def __str__(self) -> str:
        return f"{self.grid}{self.bits}g{self.group_size}{'' if self.kept is None else f'k{self.kept}'}"

    @classmethod
    def parse(cls, text: str) -> Choice:
        match = _CHOICE.fullmatch(text)
        if match is None:
            raise InputError(f"a choice is written like int4g64 (grid, bits, g, group size), got {text!r}")
        kept = None if match["kept"] is None else int(match["kept"])
        return cls(int(match["bits"]), int(match["group_size"]), match["grid"], kept)


@dataclass(frozen=True)
class Subnet:
    """One choice for every unit of a model, in the model's order. Hashable, with a JSON round trip."""

    items: tuple[tuple[str, Choice], ...]

    @classmethod
    def of(cls, choices: Mapping[str, Choice]) -> Subnet:
        return cls(tuple(choices.items()))

    @cached_property
    def choices(self) -> dict[str, Choice]:
        return dict(self.items)

    def __getitem__(self, unit: str) -> Choice:
        return self.choices[unit]

    def __iter__(self) -> Iterator[tuple[str, Choice]]:
        return iter(self.items)

    def replace(self, unit: str, choice: Choice) -> Subnet:
        return Subnet(tuple((name, choice if name == unit else old) for name, old in self.items))

    def mean_bits(self, spec: ModelSpec) -> float:
        """Code bits per weight of the full model's linears, without scales, zeros, embedding and head; a weight that
        is pruned counts as 0 bits."""
        choices = ((unit, self[unit.name]) for unit in spec.units if not unit.is_table)
        return sum(unit.kept_weights(choice.kept) * choice.bits for unit, choice in choices) / spec.linear_weights

    @cached_property
    def digest(self) -> str:
        """A short name that is the same for the same choices, on every machine."""
        text = json.dumps(sorted((name, str(choice)) for name, choice in self.items))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, str]:
        return {name: str(choice) for name, choice in self.items}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Subnet:
        choices = as_record(dict[str, str], data, "a subnet, a JSON object of unit: choice,")
        return cls(tuple((name, Choice.parse(text)) for name, text in choices.items()))


Block = tuple[tuple[str, ...], tuple[tuple[Choice, ...], ...]]
"""Units that must agree, and every choice of theirs that does, one for each of them."""

Coupled = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class SearchSpace:
    """The options of every unit, smallest bits first.

    Units are `coupled` where some make the channels that the last of them reads: in a subnet all keep the same number.
    """

    options: tuple[tuple[str, tuple[Choice, ...]], ...]
    coupled: Coupled = ()

    def __post_init__(self) -> None:
        for unit, choices in self.options:
            if not choices:
                raise InputError(f"every unit needs at least one choice, {unit} has none")
            if list(choices) != sorted(set(choices)):
                raise InputError(f"choices must be sorted and unique, got {[str(c) for c in choices]} for {unit}")
        paired = {unit for group in self.coupled for unit in group}
        for unit, choices in self.options:
            if unit not in paired and any(choice.kept is not None for choice in choices):
                raise InputError(f"a unit that keeps some of its channels is coupled to another, {unit} is not")
        if any(len(group) < 2 for group in self.coupled) or len(paired) != sum(map(len, self.coupled)):
            raise InputError("coupled units are two at least and belong together once, some are not")
        unknown = paired - {unit for unit, _ in self.options}
        if unknown:
            raise InputError(f"coupled units are units of the space, {sorted(unknown)[0]!r:.80} is not")
        for group in self.coupled:
            sides = [{choice.kept for choice in self[unit]} for unit in group]
            if any(side != sides[0] for side in sides):
                raise InputError(f"coupled units keep the same numbers of channels, {' and '.join(group)} do not")

    @classmethod
    def of(cls, options: Mapping[str, tuple[Choice, ...]], coupled: Coupled = ()) -> SearchSpace:
        return cls(tuple((unit, tuple(sorted(set(choices)))) for unit, choices in options.items()), coupled)

    @cached_property
    def by_unit(self) -> dict[str, tuple[Choice, ...]]:
        return dict(self.options)

    def __getitem__(self, unit: str) -> tuple[Choice, ...]:
        return self.by_unit[unit]

    def __iter__(self) -> Iterator[tuple[str, tuple[Choice, ...]]]:
        return iter(self.options)

    def __contains__(self, subnet: Subnet) -> bool:
        known = subnet.choices.keys() == self.by_unit.keys() and all(c in self[unit] for unit, c in subnet)
        return known and all(len({subnet[unit].kept for unit in group}) == 1 for group in self.coupled)

    def restrict(self, allowed: Callable[[str, Choice], bool]) -> SearchSpace:
        """The same space without the choices that `allowed(unit, choice)` refuses; InputError if a unit loses all.

        What one of coupled units can no longer keep, the others cannot either.
        """
        options = {unit: tuple(c for c in choices if allowed(unit, c)) for unit, choices in self.options}
        coupled = []
        for group in self.coupled:
            left = set.intersection(*({choice.kept for choice in options[unit]} for unit in group))
            options |= {unit: tuple(c for c in options[unit] if c.kept in left) for unit in group}
            if left != {None}:
                coupled.append(group)
        return SearchSpace(tuple(options.items()), tuple(coupled))

    @cached_property
    def whole(self) -> SearchSpace:
        """The same space with every channel kept: what is stored, quantized and drawn from."""
        return self.restrict(lambda unit, choice: choice.kept is None)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Units that must agree, with all that they may be together; every other unit by itself. In the space's order
        of their first units."""
        groups = {unit: group for group in self.coupled for unit in group}
        blocks = dict.fromkeys(groups.get(unit, (unit,)) for unit, _ in self.options)
        return tuple((units, self._agreeing(units)) for units in blocks)

    def _agreeing(self, units: Sequence[str]) -> tuple[tuple[Choice, ...], ...]:
        """Every choice of these units that keeps the same channels in all of them."""
        every = product(*(self[unit] for unit in units))
        return tuple(choices for choices in every if all(choice.kept == choices[0].kept for choice in choices))

    def at(self, numbers: Sequence[int]) -> Subnet:
        """The subnet of these options, one number for each of `blocks`; past a block's last option it is the last."""
        picked: dict[str, Choice] = {}
        for (units, options), number in zip(self.blocks, numbers, strict=True):
            picked |= zip(units, options[min(number, len(options) - 1)], strict=True)
        return Subnet(tuple((unit, picked[unit]) for unit, _ in self.options))

    def pruned(self, unit: str, choice: Choice, kept: int) -> Choice:
        """What `unit` becomes where it was `choice` and keeps `kept` channels; without any, bits make no difference."""
        for option in self[unit]:
            if option.kept == kept and (kept == 0 or option.whole == choice.whole):
                return option
        raise InputError(f"{unit} must have {choice.whole} with {kept} channels as an option, as others have it")

    def bits(self, spec: ModelSpec) -> tuple[int, ...]:
        """Bit-widths that every linear unit has."""
        sets = [{c.bits for c in self[unit.name] if c.kept is None} for unit in spec.units if not unit.is_table]
        return tuple(sorted(set.intersection(*sets)))

    def uniform(self, spec: ModelSpec, bits: int) -> Subnet:
        """Every linear whole and at `bits`; the embedding and the head at their largest choice."""
        items = []
        for unit in spec.units:
            same = (c for c in self[unit.name] if c.bits == bits and c.kept is None)
            choices = self[unit.name] if unit.is_table else tuple(same)
            if not choices:
                have = ", ".join(map(str, self.bits(spec)))
                raise InputError(f"bits must be one of the supernet's, got {bits}; use one of {have}")
            items.append((unit.name, choices[-1]))
        return Subnet(tuple(items))

    def to_json(self) -> dict[str, Any]:
        options: dict[str, Any] = {unit: [str(c) for c in choices] for unit, choices in self.options}
        return options | ({_COUPLED: [list(group) for group in self.coupled]} if self.coupled else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchSpace:
        plain = as_record(dict[str, Any], data, "a space")
        coupled = as_record(tuple[tuple[str, ...], ...], plain.pop(_COUPLED, []), "coupled units")
        units = as_record(dict[str, tuple[str, ...]], plain, "a space")
        return cls(tuple((unit, tuple(map(Choice.parse, choices))) for unit, choices in units.items()), coupled)
