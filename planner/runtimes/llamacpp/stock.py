"""What llama.cpp's own quantize makes of a model, as far as the grids of a supernet have its types."""

from __future__ import annotations

from collections.abc import Callable

from planner.runtimes.llamacpp.formats import type_of
from records.errors import InputError
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import EMBEDDING, EXPERT_ROLES, ModelSpec, UnitSpec

SIMPLE, SIMPLE_HEAD = "Q4_0", "Q8_0"
MEDIUM, MORE = "Q4_K", "Q6_K"
VALUE, MORE_ROLES = "v_proj", ("v_proj", "down", EXPERT_ROLES["down_proj"])
"""Of these, Q4_K_M gives some layers the larger type."""


def stock(spec: ModelSpec, space: SearchSpace) -> tuple[str, Subnet] | None:
    """Types of Q4_K_M where the space has them, else of Q4_0 with a head of Q8_0, the next that the grids have to the
    Q6_K that it really gets. None where a unit lacks its type, or value shares one with query and key."""
    values = any(unit.role == VALUE for unit in spec.units)
    medium = _of(spec, space, lambda unit: MORE if _is_head(spec, unit) or _more(spec, unit) else MEDIUM)
    if medium is not None and values:
        return "types of Q4_K_M", medium
    simple = _of(spec, space, lambda unit: SIMPLE_HEAD if _is_head(spec, unit) else SIMPLE)
    return None if simple is None else (f"types of {SIMPLE}", simple)


def _is_head(spec: ModelSpec, unit: UnitSpec) -> bool:
    """Whether logits are made by it: an embedding that is the head, too, is kept as a head is."""
    return unit.is_table and (spec.tied or unit.role != EMBEDDING)


def _of(spec: ModelSpec, space: SearchSpace, wanted: Callable[[UnitSpec], str]) -> Subnet | None:
    chosen: dict[str, Choice] = {}
    for unit in spec.units:
        same = [choice for choice in space[unit.name] if choice.kept is None and _type(choice) == wanted(unit)]
        if not same:
            return None
        chosen[unit.name] = same[-1]
    return Subnet.of(chosen)


def _type(choice: Choice) -> str | None:
    """The type that holds a choice and has all of its codes: Q4_0 holds 3 bits too, but nobody stores them so."""
    try:
        found = type_of(choice).name
    except InputError:
        return None
    return found if found.startswith(f"Q{choice.bits}_") else None


def _more(spec: ModelSpec, unit: UnitSpec) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    if unit.role not in MORE_ROLES or unit.layer is None:
        return False
    eighth = spec.num_layers // 8
    return unit.layer < eighth or unit.layer >= 7 * spec.num_layers // 8 or (unit.layer - eighth) % 3 == 2
