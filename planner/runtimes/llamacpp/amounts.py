"""What a model's shapes amount to in llama.cpp: its matrices, and the values of a layer."""

from __future__ import annotations

from collections import Counter

from planner.runtimes import passes
from planner.runtimes.llamacpp.formats import type_of
from supernet.space import Choice
from supernet.spec import EMBEDDING, HEAD, ModelSpec, UnitSpec

FLOAT_BYTES = 4


def matrices(unit: UnitSpec, kept: int | None = None) -> tuple[tuple[int, int], ...]:
    """(in_features, out_features) of each matrix of the unit with `kept` channels, None for all; none is joined."""
    found = tuple((linear.in_features, linear.out_features) for linear in unit.linears)
    if kept is None or unit.channels is None:
        return found
    parts = unit.channels.parts
    return tuple((k, kept * parts) if parts else (kept, n) for k, n in found) if kept else ()


def products(spec: ModelSpec, unit: UnitSpec, kept: int | None = None) -> tuple[tuple[int, int], ...]:
    """The matrices that are multiplied with: an embedding is only looked up, unless it is also the head."""
    return () if unit.role == EMBEDDING and not spec.tied else matrices(unit, kept)


Product = tuple[float, int, int, int]
"""How many there are, rows, in_features, out_features."""


def passed(spec: ModelSpec, unit: UnitSpec, rows: int, kept: int | None = None) -> tuple[Product, ...]:
    """The products of a pass of so many `rows`. Of experts as many as it is expected to read, and all rows divided
    among them as evenly as whole rows are."""
    shapes, read = products(spec, unit, kept), unit.share_read(rows)
    few, more = divmod(max(1.0, round(rows * unit.share_computed / read, 9)), 1)
    shares = {int(few): 1 - more, int(few) + 1: more}
    return tuple(
        (count * read * share, each, k, n)
        for (k, n), count in Counter(shapes).items()
        for each, share in shares.items()
        if share
    )


def runs_on_last_row(unit: UnitSpec) -> bool:
    """Logits are asked for the last position only, so the head sees one row a sequence."""
    return unit.role in (EMBEDDING, HEAD)


def weight_bytes(unit: UnitSpec, choice: Choice) -> int:
    kind = type_of(choice)
    return sum(n * kind.row_bytes(k) for k, n in matrices(unit, choice.kept))


def layer_values(spec: ModelSpec) -> int:
    """As `passes.layer_values`."""
    first = [unit for unit in spec.units if unit.layer == 0 and unit.role not in ATTENTION]
    return passes.layer_values(spec, max(unit.widest for unit in first))


ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv", "qkv_proj")
