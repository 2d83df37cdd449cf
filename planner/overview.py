"""A plan in few lines: the bits of every layer, and its items with the linears as one."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from planner.runtimes.base import LatencyItem, MemoryItem
from supernet.space import Subnet
from supernet.spec import ModelSpec
from supernet.ties import FUSED, Groups, siblings, tied, together


def bits_by_layer(subnet: Subnet, spec: ModelSpec) -> dict[str, str]:
    """A digit a layer for each role, one for what is no layer's; `-` where a layer has none or nothing is left of it.

    Siblings that are alike in every layer are one role. A last line says how many tenths of their channels pruned
    blocks keep, rounded down, and `.` for whole ones.
    """
    spec = tied(spec, _alike(subnet, spec))
    subnet = together(subnet, spec, "a plan")
    roles: dict[str, dict[int, str]] = {}
    pruned: dict[int, str] = {}
    for unit in spec.units:
        choice, layer = subnet[unit.name], -1 if unit.layer is None else unit.layer
        roles.setdefault(unit.role, {})[layer] = "-" if choice.kept == 0 else str(choice.bits)
        if unit.channels is not None and choice.kept is not None:
            pruned[unit.layer or 0] = str(10 * choice.kept // unit.channels.count)
    if pruned:
        roles["tenths kept"] = {layer: pruned.get(layer, ".") for layer in range(spec.num_layers)}
    return {
        role: layers[-1] if -1 in layers else "".join(layers.get(layer, "-") for layer in range(spec.num_layers))
        for role, layers in roles.items()
    }


def _alike(subnet: Subnet, spec: ModelSpec) -> Groups:
    found: Groups = ()
    for parts in FUSED.values():
        groups = siblings(spec, (parts,))
        if all(len({subnet[unit] for unit in group}) == 1 for group in groups):
            found += groups
    return found


def summed(items: Iterable[MemoryItem | LatencyItem], tables: Collection[str]) -> dict[tuple[str, str], float]:
    """Bytes or ms of a plan's items by (name, basis); units that are none of the `tables`, of which there are hundreds,
    as one."""
    sums: dict[tuple[str, str], float] = {}
    for item in items:
        name = "linears" if item.unit and item.unit not in tables else item.name
        amount = item.bytes if isinstance(item, MemoryItem) else item.ms
        sums[name, item.basis] = sums.get((name, item.basis), 0) + amount
    return sums
