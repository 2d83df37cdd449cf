"""How work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`(what, done, total)`. What follows a comma in `what` may change within a stage: "train, KL 0.412"."""


def silent(what: str, done: int, total: int) -> None:
    """The progress of who does not want any."""
