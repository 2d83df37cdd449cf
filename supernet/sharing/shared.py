"""One adapter for all choices of a linear: the ablation of LLM-QFA (arXiv 2405.20202, section 4.3).

With as many parameters as decoupled adapters have together (`rank` times the number of choices) it is the comparison
at matched capacity, which the paper leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence

from supernet.sharing.base import Agreement, Sharing
from supernet.space import Choice


class Shared(Sharing):
    def groups(self, choices: Sequence[Choice], agreement: Agreement) -> tuple[tuple[Choice, ...], ...]:
        return (tuple(choices),) if choices else ()
