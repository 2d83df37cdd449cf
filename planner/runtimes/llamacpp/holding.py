"""What a GGUF file holds of a model, and what that takes on disk."""

from __future__ import annotations

from pathlib import Path

from planner.request import Workload
from planner.runtimes.base import Holding
from planner.runtimes.llamacpp import architectures, formats, tensors
from supernet.space import Choice
from supernet.spec import UnitSpec


class LlamaHolding(Holding):
    """One file, in which each matrix has its own type."""

    def refusal(self) -> str | None:
        return architectures.refusal(self.spec) or tensors.refusal(self.spec)

    def unit_refusal(self, unit: UnitSpec, choice: Choice) -> str | None:
        if choice.kept is not None:
            return "llama.cpp reads feed-forward blocks of one width for all layers, so none is pruned"
        for linear in unit.linears:
            reason = formats.refusal(choice, linear.in_features)
            if reason is not None:
                return reason
        return None

    def unit_bytes(self, unit: UnitSpec, choice: Choice) -> int:
        return tensors.unit_bytes(unit, choice)

    def rest_bytes(self, workload: Workload, model_dir: Path) -> int:
        """Norms and biases, and what describes the model: its settings and its vocabulary are in the file too."""
        from planner.runtimes.llamacpp import metadata

        return tensors.float_bytes(self.spec) + metadata.head_bytes(self.spec, model_dir)
