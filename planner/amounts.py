"""Amounts as people read them, on the terminal and on pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

MOST_DECIMALS = 4


def size(count: int | float | None, decimals: int = 1) -> str:
    """Bytes as people read them: 1 MB is 10^6 bytes, as in the memory strings that `--mem` takes."""
    if count is None:
        return "-"
    return f"{count / 1e9:.{decimals}f} GB" if count >= 1e9 else f"{count / 1e6:.{decimals}f} MB"


def sizes(counts: Sequence[int | float | None]) -> list[str]:
    """Sizes beside each other, with as many decimals as tell different ones apart, `MOST_DECIMALS` at most."""
    different = len(set(counts))
    for decimals in range(1, MOST_DECIMALS + 1):
        found = [size(count, decimals) for count in counts]
        if len(set(found)) == different:
            break
    return found


def milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e3:.2f} s" if value >= 1e3 else f"{value:.1f} ms"


def per_second(ms: float | None) -> str:
    """Tokens a second where each takes `ms`; - where none does."""
    return f"{float(f'{1000 / ms:.3g}'):g}" if ms else "-"


def rate(bytes_per_s: float | None) -> str:
    return "-" if bytes_per_s is None else f"{bytes_per_s / 1e9:.0f} GB/s"


def sequences(count: float) -> str:
    """How many have room at once: fractions count where there are few."""
    return f"{count:.2f}" if count < 100 else f"{math.floor(count)}"


def amount(value: float | None, unit: str) -> str:
    """A value in the unit of a check's row; - for None."""
    shown: dict[str, Callable[[float], str]] = {"bytes": size, "ms": milliseconds}
    return "-" if value is None else shown.get(unit, "{:.4g}".format)(value)
