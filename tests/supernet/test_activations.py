"""What int8 activations cost, known before any package is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from supernet.activations import INT8, LEVELS, activation_losses, rounded, rounded_activations
from supernet.create import create
from supernet.recipe import Recipe


def test_each_group_keeps_its_largest_value_and_is_off_by_half_a_step() -> None:
    x = torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(0))
    found = rounded(x, 16)
    step = x.unflatten(-1, (4, 16)).abs().amax(-1, keepdim=True) / LEVELS
    assert ((found - x).unflatten(-1, (4, 16)).abs() <= step / 2 * (1 + 1e-5)).all()
    assert torch.allclose(found.unflatten(-1, (4, 16)).abs().amax(-1), x.unflatten(-1, (4, 16)).abs().amax(-1))
    assert rounded(torch.zeros(1, 16), 16).abs().max() == 0


def test_a_channel_a_thousand_times_the_rest_takes_its_group_with_it() -> None:
    x = torch.ones(1, 32)
    x[0, 3] = 1000.0
    found = rounded(x, 16)
    assert found[0, :16].nonzero().flatten().tolist() == [3]
    assert torch.allclose(found[0, 16:], x[0, 16:])


@pytest.fixture
def made(source: str, data: str, tmp_path: Path) -> Path:
    recipe = Recipe(bits=(2, 8), group_size=16, steps=8, batch=2, window_tokens=16, data=data, quantizer="rtn")
    return create(source, tmp_path / "out", recipe).path


def test_a_finished_supernet_knows_and_massive_channels_cost_more(made: Path) -> None:
    from supernet.checkpoint import open_supernet

    files = open_supernet(made)
    assert set(files.activations) == {INT8} and 0 <= files.activations[INT8] < 0.01
    supernet, subnet = files.load(), files.space.uniform(files.spec, 8)
    reference = files.reference()
    plain = activation_losses(supernet, subnet, reference)[INT8]
    assert plain == pytest.approx(files.activations[INT8], abs=1e-4)
    with torch.no_grad():  # one channel in each norm, and nothing else: what reads it is then far from what it was
        for name, part in supernet.model.named_parameters():
            if "norm" in name:
                part[3] *= 1000
    assert activation_losses(supernet, subnet, reference)[INT8] > plain


def test_nothing_is_left_of_it(made: Path) -> None:
    from supernet.checkpoint import open_supernet
    from supernet.model import hidden_states

    files = open_supernet(made)
    supernet = files.load()
    ids = files.reference().windows[:1]
    with torch.no_grad():
        before = hidden_states(supernet.model, ids)
        with rounded_activations(supernet):
            assert not torch.equal(hidden_states(supernet.model, ids), before)
        assert torch.equal(hidden_states(supernet.model, ids), before)
