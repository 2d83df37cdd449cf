"""A row of a check: what the user limited, what was promised, what was measured, and what follows."""

from __future__ import annotations

from dataclasses import dataclass

HOLDS, BROKEN = "holds", "broken"
PEAK_MEMORY, PEAK_HOST_MEMORY = "peak memory", "peak host memory"
SLOW = 0.10  # by so much a machine must be slower than its profile to be called slower


@dataclass(frozen=True)
class Row:
    """`limit` is the user's and has no tolerance. `promised` is ours, and kept where `measured` is over it by no more
    than the share `band`; None for no promise. Less than limited or promised is kept as well.

    `verdict` is None where nothing follows, and `note` says why; with `promises` something should have, and the result
    is incomplete.
    """

    name: str
    unit: str
    promised: float | None
    measured: float | None
    band: float | None = 0.0
    limit: float | None = None
    verdict: str | None = HOLDS
    note: str = ""
    promises: bool = True

    @property
    def holds(self) -> bool | None:
        return None if self.verdict is None else self.verdict == HOLDS

    @property
    def open(self) -> bool:
        return self.verdict is None and self.promises


def row(
    name: str, unit: str, promised: float | None, measured: float, band: float | None, limit: float | None = None,
    note: str = "",
) -> Row:  # fmt: skip
    """What follows of a measurement. A `band` of None says that `promised` is an estimate and no promise."""
    if limit is not None and measured > limit:
        return Row(name, unit, promised, measured, band, limit, BROKEN, note or "over the limit")
    if promised is None or band is None:
        verdict = None if limit is None else HOLDS
        return Row(name, unit, promised, measured, band, limit, verdict, note, promises=False)
    verdict = HOLDS if measured <= promised * (1 + band) else BROKEN
    return Row(name, unit, promised, measured, band, limit, verdict, note)


def unchecked(name: str, unit: str, promised: float | None, note: str) -> Row:
    return Row(name, unit, promised, None, verdict=None, note=note)
