"""Choices, subnets and the space they come from. Values only; nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from supernet.spec import ModelSpec

_CHOICE = re.compile(r"(?P<grid>[a-z_]+?)(?P<bits>\d+)g(?P<group_size>\d+)")


@dataclass(frozen=True, order=True)
class Choice:
    """What a unit may be. Written `int4g64`: the grid, the bits, the group size along in_features."""

    bits: int
    group_size: int
    grid: str = "int"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be from 1 to 8, got {self.bits}")
        if self.group_size < 1:
            raise ValueError(f"group_size must be positive, got {self.group_size}")

    def __str__(self) -> str:
        return f"{self.grid}{self.bits}g{self.group_size}"

    @classmethod
    def parse(cls, text: str) -> Choice:
        match = _CHOICE.fullmatch(text)
        if match is None:
            raise ValueError(f"a choice is written like int4g64 (grid, bits, g, group size), got {text!r}")
        return cls(int(match["bits"]), int(match["group_size"]), match["grid"])


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
        """Code bits per weight over the decoder's linears, without scales, zeros, embedding and head."""
        bits = sum(unit.weights * self[unit.name].bits for unit in spec.units if not unit.is_table)
        return bits / spec.linear_weights

    @cached_property
    def digest(self) -> str:
        """A short name that is the same for the same choices, on every machine."""
        text = json.dumps(sorted((name, str(choice)) for name, choice in self.items))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, str]:
        return {name: str(choice) for name, choice in self.items}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Subnet:
        if not isinstance(data, Mapping):
            raise ValueError(f"a subnet is a JSON object of unit: choice, got {type(data).__name__}")
        return cls(tuple((name, Choice.parse(text)) for name, text in data.items()))


@dataclass(frozen=True)
class SearchSpace:
    """The options of every unit, smallest bits first."""

    options: tuple[tuple[str, tuple[Choice, ...]], ...]

    def __post_init__(self) -> None:
        for unit, choices in self.options:
            if not choices:
                raise ValueError(f"every unit needs at least one choice, {unit} has none")
            if list(choices) != sorted(set(choices)):
                raise ValueError(f"choices must be sorted and unique, got {[str(c) for c in choices]} for {unit}")

    @classmethod
    def of(cls, options: Mapping[str, tuple[Choice, ...]]) -> SearchSpace:
        return cls(tuple((unit, tuple(sorted(set(choices)))) for unit, choices in options.items()))

    @cached_property
    def by_unit(self) -> dict[str, tuple[Choice, ...]]:
        return dict(self.options)

    def __getitem__(self, unit: str) -> tuple[Choice, ...]:
        return self.by_unit[unit]

    def __iter__(self) -> Iterator[tuple[str, tuple[Choice, ...]]]:
        return iter(self.options)

    def __contains__(self, subnet: Subnet) -> bool:
        return subnet.choices.keys() == self.by_unit.keys() and all(c in self[unit] for unit, c in subnet)

    def restrict(self, allowed: Callable[[str, Choice], bool]) -> SearchSpace:
        """The same space without the choices that `allowed(unit, choice)` refuses; ValueError if a unit loses all."""
        return SearchSpace(tuple((u, tuple(c for c in choices if allowed(u, c))) for u, choices in self.options))

    def bits(self, spec: ModelSpec) -> tuple[int, ...]:
        """Bit-widths that every linear unit has."""
        sets = [{c.bits for c in self[unit.name]} for unit in spec.units if not unit.is_table]
        return tuple(sorted(set.intersection(*sets)))

    def uniform(self, spec: ModelSpec, bits: int) -> Subnet:
        """Every linear at `bits`; the embedding and the head at their largest choice."""
        items = []
        for unit in spec.units:
            choices = self[unit.name] if unit.is_table else tuple(c for c in self[unit.name] if c.bits == bits)
            if not choices:
                have = ", ".join(map(str, self.bits(spec)))
                raise ValueError(f"bits must be one of the supernet's, got {bits}; use one of {have}")
            items.append((unit.name, choices[-1]))
        return Subnet(tuple(items))

    def to_json(self) -> dict[str, Any]:
        return {unit: [str(c) for c in choices] for unit, choices in self.options}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchSpace:
        return cls(tuple((unit, tuple(Choice.parse(c) for c in choices)) for unit, choices in data.items()))
