"""Distillation: what a subnet learns from, and its loss on a batch, the KL divergence per token from that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from supernet.model import head_gradient, hidden_states, logits_of


@dataclass(frozen=True)
class Target:
    """What a subnet learns from: a model's last hidden states on the batch, detached, and the model for its head."""

    model: Any
    hidden: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, ids: Tensor) -> Target:
        return cls(model, hidden_states(model, ids))


def distill(teacher: Target, student: Any, ids: Tensor) -> tuple[float, Target]:
    """KL per token of the student from the teacher on `ids` `(batch, tokens)`; adds to the gradients.

    Returns the loss, and the student as a target of other subnets: heads are frozen and the same for all of them.
    """
    hidden, targets = hidden_states(student, ids), teacher.hidden.flatten(0, 1)
    total = torch.zeros((), dtype=torch.float64, device=targets.device)

    def slope(tokens: slice, logits: Tensor) -> Tensor:
        full, mine = logits_of(teacher.model, targets[tokens]).float().log_softmax(-1), logits.log_softmax(-1)
        likely = full.exp()
        total.add_(likely.flatten().dot(full.sub_(mine).flatten()))
        return mine.exp_().sub_(likely)

    gradient = head_gradient(student, hidden.flatten(0, 1), slope).view_as(hidden)
    hidden.backward(gradient / ids.numel())
    return total.item() / ids.numel(), Target(student, hidden.detach())
