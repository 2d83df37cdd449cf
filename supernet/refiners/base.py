"""What a refiner is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from torch import Tensor

from supernet.build import Supernet
from supernet.gate import Gate
from supernet.progress import Progress
from supernet.quantizers import Quantizer


class Refiner(ABC):
    """Improves the codes of a whole supernet, where a quantizer sees one matrix."""

    begins: ClassVar[Quantizer]
    """Finds the codes to start from."""

    @abstractmethod
    def within(self, steps: int | None, minutes: float | None) -> Self:
        """The same with so many steps, else with what fits into the minutes."""

    @abstractmethod
    def refine(
        self,
        full: Any,
        teacher: Any,
        supernet: Supernet,
        windows: Tensor,
        seed: int,
        progress: Progress,
        gate: Gate | None = None,
    ) -> dict[str, Any]:
        """Leave better codes in the supernet. Returns what is worth recording of it.

        `full` is the full model in float32, `teacher` the same in the dtype that the supernet computes in; `windows`
        `(n, tokens)`. What held-out ones of them say that it lost goes back through the `gate`.
        """
