"""Labels that a model draws for itself. Gradients of their log probability give its Fisher information, where those of
a text's own labels give what is called the empirical one (Kunstner et al., arXiv 1905.12558).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from supernet.model import head_gradient


def draw(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One index a row, `(rows, 1)`. By the inverse of the distribution: one random number a row, not one an entry."""
    reached = probabilities.cumsum(-1)
    drawn = torch.rand(len(reached), 1, generator=generator, device=reached.device) * reached[:, -1:]
    return torch.searchsorted(reached, drawn).clamp(max=probabilities.shape[-1] - 1)


def label_gradient(model: Any, hidden: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient of log p(y) with respect to `hidden`, what the head reads, `(batch, tokens, hidden_size)`; each
    token's y is drawn from the model."""

    def slope(tokens: slice, logits: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        labels = draw(probabilities, generator)
        return probabilities.neg_().scatter_add_(1, labels, torch.ones_like(labels, dtype=probabilities.dtype))

    return head_gradient(model, hidden.flatten(0, 1), slope).view_as(hidden)
