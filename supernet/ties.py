"""Units that are computed as one product somewhere, and that share one choice there.

The units of a supernet are its linears, each by itself. What ties some of them, a runtime or a training, sees the model
as a spec whose units hold several linears: `tied` makes it, `together` and `apart` take a subnet there and back. Of
tied units a space has the choices that all of them have, and what they lose adds up.

Supernets of before have units of several linears. Those stay what they are: nothing is left there to be tied.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from records.errors import InputError
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import EXPERT_ROLES, ModelSpec, UnitSpec

Groups = tuple[tuple[str, ...], ...]
"""Names of units, those that are tied together."""

FUSED = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}
"""Siblings that read the same input, by the role of the unit that they are together."""

_EXPERT = re.compile(r"\.experts\.\d+\.")

K = TypeVar("K")


def whole_experts(spec: ModelSpec) -> Groups:
    """All matrices of a layer's experts, layer by layer."""
    layers: dict[int, list[str]] = {}
    for unit in spec.units:
        if unit.role in EXPERT_ROLES.values() and unit.layer is not None:
            layers.setdefault(unit.layer, []).append(unit.name)
    return tuple(map(tuple, layers.values()))


def siblings(spec: ModelSpec, fused: Iterable[Sequence[str]] = tuple(FUSED.values())) -> Groups:
    """The linears of a module whose names end in the parts of one of `fused`, in the model's order; a module that lacks
    one of the parts ties none of them."""
    names = {unit.name for unit in spec.units if [linear.name for linear in unit.linears] == [unit.name]}
    by_first = {parts[0]: parts for parts in fused}
    found = []
    for name in (unit.name for unit in spec.units):
        parent, _, tail = name.rpartition(".")
        group = tuple(f"{parent}.{part}" for part in by_first.get(tail, ()))
        if group and names.issuperset(group):
            found.append(group)
    return tuple(found)


def tied(spec: ModelSpec, groups: Groups) -> ModelSpec:
    """`spec` with one unit for each of `groups`, where the first of it was."""
    if not groups:
        return spec
    units = {unit.name: unit for unit in spec.units}
    first = {group[0]: group for group in groups}
    later = {name for group in groups for name in group[1:]}
    joined = (_joined([units[one] for one in first.get(name, (name,))]) for name in units if name not in later)
    return replace(spec, units=tuple(joined))


def _joined(units: Sequence[UnitSpec]) -> UnitSpec:
    if len(units) == 1:
        return units[0]
    parent = units[0].name.rpartition(".")[0]
    if units[0].chosen is not None:
        linears = tuple(linear for unit in units for linear in unit.linears)
        return UnitSpec(parent, "experts", units[0].layer, linears, units[0].chosen, units[0].chosen_by)
    tails = tuple(unit.name.rpartition(".")[2] for unit in units)
    role = next((role for role, parts in FUSED.items() if parts == tails), "+".join(tails))
    return UnitSpec(f"{parent}.{role}", role, units[0].layer, tuple(lin for unit in units for lin in unit.linears))


def fused_role(role: str) -> str:
    """The role that a unit of this `role` has where it is tied as `FUSED` says."""
    return next((whole for whole, parts in FUSED.items() if role in parts), role)


def _members(unit: UnitSpec, known: Container[str]) -> tuple[str, ...]:
    """The units, of those `known`, that a unit of a tied spec is made of."""
    if unit.name in known:
        return (unit.name,)
    names = (linear.name if linear.name in known else _EXPERT.sub(".experts.", linear.name) for linear in unit.linears)
    return tuple(dict.fromkeys(names))


def together(subnet: Subnet, spec: ModelSpec, by: str) -> Subnet:
    """`subnet` in the units of the tied `spec`. InputError where tied units differ; `by` names who ties them."""
    items = []
    for unit in spec.units:
        members = _members(unit, subnet.choices)
        choices = [subnet[name] for name in members]
        if any(choice != choices[0] for choice in choices):
            parent, got = members[0].rpartition(".")[0], ", ".join(map(str, choices))
            parts = ", ".join(name.rpartition(".")[2] for name in members)
            raise InputError(
                f"{by} computes {parts} of {parent} together and takes one choice for them, got {got}; plan for {by}"
            )
        items.append((unit.name, choices[0]))
    return Subnet(tuple(items))


def apart(subnet: Subnet, tied_spec: ModelSpec, spec: ModelSpec) -> Subnet:
    """A `subnet` of `tied_spec` in the units of `spec`, of which that was made."""
    names = {unit.name for unit in spec.units}
    choices = {name: subnet[unit.name] for unit in tied_spec.units for name in _members(unit, names)}
    return Subnet(tuple((unit.name, choices[unit.name]) for unit in spec.units))


def tied_space(space: SearchSpace, spec: ModelSpec) -> SearchSpace:
    """`space` in the units of the tied `spec`. InputError where tied units have no choice in common."""
    options: dict[str, tuple[Choice, ...]] = {}
    whole: dict[str, str] = {}
    for unit in spec.units:
        members = _members(unit, space.by_unit)
        whole |= dict.fromkeys(members, unit.name)
        options[unit.name] = tuple(c for c in space[members[0]] if all(c in space[name] for name in members))
        if not options[unit.name]:
            raise InputError(f"tied units need a choice that all of them have, {', '.join(members)} have none")
    coupled = (tuple(dict.fromkeys(whole[name] for name in group)) for group in space.coupled)
    return SearchSpace(tuple(options.items()), tuple(coupled))


def tied_table(table: Mapping[str, Mapping[K, float]], spec: ModelSpec) -> dict[str, dict[K, float]]:
    """What each choice loses, by unit of the tied `spec`: the sum over its parts, for choices that all of them have."""
    found = {}
    for unit in spec.units:
        parts = [table.get(name, {}) for name in _members(unit, table)]
        found[unit.name] = {c: sum(part[c] for part in parts) for c in parts[0] if all(c in part for part in parts)}
    return found
