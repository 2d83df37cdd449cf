"""Labels that a model draws for itself, and the gradient of their log probability."""

from __future__ import annotations

import pytest
import torch

from supernet.labels import draw, label_gradient
from supernet.model import HEAD_TOKENS, hidden_states, logits_of
from tests.tiny import tiny_model, windows


def test_labels_are_drawn_as_often_as_they_are_likely() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3]).expand(20_000, 4)
    found = draw(probabilities, torch.Generator().manual_seed(0)).flatten().bincount(minlength=4) / 20_000
    assert torch.allclose(found, probabilities[0], atol=0.02)
    assert found[1] == 0


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_gradient_is_that_of_the_log_probability(family: str) -> None:
    """Over several stretches of tokens, and through the soft cap of the models that have one."""
    model = tiny_model(family)
    hidden = hidden_states(model, windows(3, HEAD_TOKENS // 2))
    leaf = hidden.clone().requires_grad_()
    log_probs = logits_of(model, leaf).flatten(0, 1).log_softmax(-1)
    labels = draw(log_probs.detach().exp(), torch.Generator().manual_seed(1))
    log_probs.gather(1, labels).sum().backward()
    found = label_gradient(model, hidden, torch.Generator().manual_seed(1))
    assert leaf.grad is not None
    assert torch.allclose(found, leaf.grad, atol=1e-5)
