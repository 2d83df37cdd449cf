"""One quantizer for narrow codes and another for wide ones: a refiner that learns the narrow ones leaves the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from supernet.grids import QuantizedWeight
from supernet.quantizers.base import Quantizer
from supernet.space import Choice


@dataclass(frozen=True)
class ByWidth(Quantizer):
    """`wide` finds the codes of choices with bits in `widths`, `narrow` all others."""

    narrow: Quantizer
    wide: Quantizer
    widths: tuple[int, ...]

    @property
    def needs_hessian(self) -> bool:  # type: ignore[override]
        return self.narrow.needs_hessian or self.wide.needs_hessian

    @property
    def needs_outputs(self) -> bool:  # type: ignore[override]
        return self.narrow.needs_outputs or self.wide.needs_outputs

    def quantize(
        self, weight: Tensor, choices: Sequence[Choice], hessian: Tensor | None = None, outputs: Tensor | None = None
    ) -> dict[Choice, QuantizedWeight]:
        found: dict[Choice, QuantizedWeight] = {}
        for quantizer, here in ((self.narrow, False), (self.wide, True)):
            mine = [choice for choice in choices if (choice.bits in self.widths) == here]
            if mine:
                found |= quantizer.quantize(weight, mine, hessian, outputs)
        return {choice: found[choice] for choice in choices}
