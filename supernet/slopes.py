"""How the loss of a subnet changes, to first order, with every other choice of every unit.

Sensitivities are of the full model, where every unit is read alone. At a mixture the units' errors meet, and one pass
forward and backward tells what each change would do there:

    KL(subnet with dW) - KL(subnet) ~ <dKL/dW, dW>

with dW what a choice changes in the unit's matrices. It says which way, not how far: a step along it is short, and is
judged by the loss itself (`planner.search.steps`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from supernet.build import Supernet
from supernet.model import head_gradient, hidden_states
from supernet.progress import Progress, silent
from supernet.reference import Reference
from supernet.sensitivity import Table, each_gradient
from supernet.space import Subnet


def slopes(
    supernet: Supernet, subnet: Subnet, reference: Reference, dtype: torch.dtype, progress: Progress = silent
) -> Table:
    """KL per token that every choice of every linear unit adds to that of `subnet`, to first order, on the reference's
    windows; 0 for the choice it has. Units that are tables are left out.

    A matrix's gradient is kept as float32 until all windows are read: in all as many numbers as the linears have.
    """
    supernet.set_dtype(dtype)
    supernet.activate(subnet)
    reference = reference.to(supernet.model.device)
    units = [unit for unit in supernet.spec.units if not unit.is_table]
    gradients: dict[str, Tensor] = {}

    def collect(linear: str, module: Any, x: Tensor, grad: Tensor) -> None:
        found = (grad.T @ x).float()
        gradients[linear] = gradients[linear].add_(found) if linear in gradients else found

    linears = [linear.name for unit in units for linear in unit.linears]
    backward, report = _Divergence(supernet.model, reference), partial(progress, "slopes")
    each_gradient(supernet.model, linears, reference.windows, backward, collect, report)
    tokens = len(reference.windows) * (reference.windows.shape[1] - reference.first)
    table: Table = {}
    for unit in units:
        changes = dict.fromkeys(supernet.space.whole[unit.name], 0.0)
        for linear in unit.linears:
            matrix, gradient = supernet.matrices[linear.name], gradients.pop(linear.name).flatten()
            now = matrix.effective(subnet[unit.name])
            for choice in changes:
                if choice != subnet[unit.name]:
                    changes[choice] += gradient.dot((matrix.effective(choice) - now).flatten()).item() / tokens
        table[unit.name] = changes
    return table


class _Divergence:
    """Goes back from the KL of the model from the reference, summed over a batch of its windows; they come in order."""

    def __init__(self, model: Any, reference: Reference) -> None:
        self.model, self.reference, self.number = model, reference, 0

    def __call__(self, batch: Tensor) -> None:
        first = self.reference.first
        with torch.enable_grad():
            hidden = hidden_states(self.model, batch)
        gradient = torch.zeros_like(hidden)
        for number, window in enumerate(hidden.detach()):
            gradient[number, first:] = head_gradient(self.model, window[first:], self._slope)
            self.number += 1
        hidden.backward(gradient)

    def _slope(self, tokens: slice, logits: Tensor) -> Tensor:
        first = self.reference.first
        theirs = self.reference.log_probs(self.number, slice(first + tokens.start, first + tokens.stop))
        return logits.softmax(-1).sub_(theirs.exp_())
