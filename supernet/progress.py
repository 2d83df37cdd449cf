"""How work says how far it is, and what it decided on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`(what, done, total)`. What follows a comma in `what` may change within a stage: "train, KL 0.412"."""

LOG = logging.getLogger("bitfleet")


def share_of(progress: Progress, what: str, number: int, parts: int) -> Progress:
    """The progress of the part `number` of so many equal `parts` of a stage that is called `what`."""
    return lambda _, done, total: progress(what, number * total + done, parts * total)


def silent(what: str, done: int, total: int) -> None:
    """The progress of who does not want any."""


def say(line: str) -> None:
    """One line for the person who waits: what was left out, shortened or taken back. Who prints, listens to `LOG`."""
    LOG.info(line)
