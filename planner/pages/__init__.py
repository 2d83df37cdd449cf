"""Pages for people: each one file without scripts, nothing loaded from elsewhere, light or dark as the system is."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from planner.amounts import amount, milliseconds, size

if TYPE_CHECKING:
    import jinja2


@cache
def environment() -> jinja2.Environment:
    """What the templates of this folder are rendered with; numbers are written as the command line writes them. One for
    all pages, as it keeps the templates, and to compile one takes longer than to render it."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"size": size, "ms": milliseconds, "percent": percent}
    made.globals["amount"] = amount
    return made


def percent(share: float) -> str:
    return f"{100 * share:.3g}\u00a0%"
