"""Learned rounding on every architecture: it lowers the KL of what it is given, and leaves plain codes behind."""

from __future__ import annotations

import pytest
import torch

from supernet.blocks import decoder_layers
from supernet.build import silent
from supernet.evaluate import Reference, evaluate
from supernet.quantizers import Learned
from supernet.quantizers.learned import output_weights
from supernet.space import Choice
from tests.supernet.conftest import Made, make
from tests.tiny import FAMILIES, tiny_model, windows


def losses(made: Made, bits: tuple[int, ...]) -> list[float]:
    reference = Reference.of(made.model, windows(4, 32, seed=9))
    return [q.kl for q in evaluate(made.supernet, [made.space.uniform(made.spec, b) for b in bits], reference)]


def refine(made: Made, steps: int = 30) -> None:
    Learned(steps=steps, batch=4).refine(made.model, made.model, made.supernet, windows(96, 32), 0, silent)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_lowers_the_loss_of_every_bit_width(family: str) -> None:
    made = make(family, bits=(2, 3), quantizer=Learned())
    before = losses(made, (2, 3))
    refine(made)
    after = losses(made, (2, 3))
    assert all(new < old for new, old in zip(after, before, strict=True)), (before, after)
    assert not any(matrix.adapters for matrix in made.supernet.matrices.values())


def test_the_same_seed_learns_the_same_codes() -> None:
    found = []
    for _ in range(2):
        made = make(bits=(2,), quantizer=Learned())
        refine(made, steps=3)
        found.append(made.supernet.weights())
    for name, choices in found[0].items():
        for choice, weight in choices.items():
            assert torch.equal(weight.codes, found[1][name][choice].codes)
            assert torch.equal(weight.scale, found[1][name][choice].scale)


def test_tables_and_unused_choices_stay() -> None:
    made = make(bits=(2, 4), quantizer=Learned())
    before = made.supernet.weights()["model.embed_tokens"]
    refine(made, steps=2)
    after = made.supernet.weights()["model.embed_tokens"]
    assert all(torch.equal(before[c].codes, after[c].codes) for c in before)


def test_weights_of_errors_have_mean_one() -> None:
    model = tiny_model()
    tokens, channels = output_weights(model, decoder_layers(model), windows(8, 16), 0, silent)
    assert tokens.shape == (2, 8, 16)
    assert torch.allclose(tokens.mean((1, 2)), torch.ones(2), atol=1e-4)
    assert torch.allclose(channels.mean(1), torch.ones(2), atol=1e-4)


def test_minutes_become_steps_and_timing_leaves_nothing_behind() -> None:
    found = []
    for quantizer in (Learned(steps=8, batch=4), Learned(minutes=1e-6, batch=4)):
        made = make(bits=(2,), quantizer=Learned())
        recorded = quantizer.refine(made.model, made.model, made.supernet, windows(8, 32), 0, silent)
        assert recorded == {"block_steps": 8}
        found.append(made.supernet.weights()["model.layers.0.mlp.up_proj"][Choice(2, 16)])
    assert torch.equal(found[0].codes, found[1].codes)
    made = make(bits=(2,), quantizer=Learned())
    recorded = Learned(minutes=0.05).refine(made.model, made.model, made.supernet, windows(8, 32), 0, silent)
    assert recorded["block_steps"] > 8
