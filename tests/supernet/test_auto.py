"""What is left open is decided by time, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch

from supernet.adapters import ADAPTERS
from supernet.auto import ENOUGH, decided, steps_that_fit
from supernet.formats import FORMATS
from supernet.recipe import Recipe
from tests.tiny import FAMILIES, tiny_model, windows

TEXT = windows(8, 32)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, ("learned", "slimmable")),
        ({"bits": (6, 8), "train_bits": (6,)}, ("gptq", "balanced")),
        ({"steps": 5}, ("gptq", "balanced")),
        ({"steps": 5, "block_steps": 9}, ("learned", "slimmable")),
        ({"steps": 5, "quantizer": "rtn"}, ("rtn", "balanced")),
        ({"steps": 5, "quantizer": "learned", "sampler": "uniform"}, ("learned", "uniform")),
    ],
)
def test_what_is_left_open_is_decided(given: dict[str, object], found: tuple[str, str]) -> None:
    recipe = decided(Recipe(**{"minutes": 134.0, **given}), tiny_model(), TEXT)
    assert (recipe.quantizer, recipe.sampler) == found


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"quantizer": "learned"}, (2, 3)),
        ({"quantizer": "learned", "train_bits": (2,)}, (2,)),
        ({"quantizer": "gptq"}, (2, 3)),
        ({"quantizer": "gptq", "bits": (3, 5, 8)}, (3,)),
    ],
)
def test_which_bit_widths_have_adapters(given: dict[str, object], found: tuple[int, ...]) -> None:
    assert decided(Recipe(**given), tiny_model(), TEXT).adapted_bits == found


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_learned_codes_are_trained_at_a_lower_rate(adapter: str) -> None:
    sharing = "shared" if ADAPTERS[adapter].routes else "decoupled"
    grid = "sym" if ADAPTERS[adapter].deploys in FORMATS["sym"].folds + ("side",) else "int"
    given = {"steps": 5, "adapter": adapter, "sharing": sharing, "grid": grid}
    own = decided(Recipe(**given), tiny_model(), TEXT).rate
    assert own == ADAPTERS[adapter].learning_rate
    assert decided(Recipe(block_steps=9, **given), tiny_model(), TEXT).rate == pytest.approx(own / 3)
    assert decided(Recipe(block_steps=9, learning_rate=0.5, **given), tiny_model(), TEXT).rate == 0.5


def test_too_little_time_for_learned_codes() -> None:
    recipe = decided(Recipe(minutes=1e-6), tiny_model(), TEXT)
    assert (recipe.quantizer, recipe.sampler) == ("gptq", "balanced")


@pytest.mark.parametrize("family", FAMILIES)
def test_timing_leaves_the_model_as_it_was(family: str) -> None:
    model = tiny_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert steps_that_fit(model, TEXT, (2, 3, 8), 100.0) > ENOUGH
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.dtype == torch.float32 and parameter.grad is None for parameter in model.parameters())
