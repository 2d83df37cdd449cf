"""What a sharing is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from supernet.space import Choice

Agreement = Mapping[tuple[Choice, Choice], float]
"""Cosine of the gradients that two choices of a unit leave on a shared adapter; the smaller choice comes first."""


class Sharing(ABC):
    """Divides the choices of a unit into groups, each trained through one adapter."""

    measures: ClassVar[bool] = False  # whether `groups` reads the agreement

    @abstractmethod
    def groups(self, choices: Sequence[Choice], agreement: Agreement) -> tuple[tuple[Choice, ...], ...]:
        """Every choice in exactly one group. `agreement` is empty where the member does not measure."""
