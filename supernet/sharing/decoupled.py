"""An adapter for every choice: bit-widths do not interfere (LLM-QFA, arXiv 2405.20202, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from supernet.sharing.base import Agreement, Sharing
from supernet.space import Choice


class Decoupled(Sharing):
    def groups(self, choices: Sequence[Choice], agreement: Agreement) -> tuple[tuple[Choice, ...], ...]:
        return tuple((choice,) for choice in choices)
