"""A subnet whose matrices are dequantized once says what it says, and is as it was afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from supernet.adapters import ADAPTERS
from supernet.dense import FLOAT_BYTES, dense
from supernet.evidence import continues
from supernet.linear import SuperLinear, TiedHead
from supernet.said import STEPS
from supernet.space import Choice
from tests.supernet.conftest import Made, make
from tests.tiny import FAMILIES, MIXTURES, windows

NEW = 5


def linears(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, SuperLinear | TiedHead)]


@pytest.mark.parametrize("family", {**FAMILIES, **MIXTURES})
def test_it_says_the_same_and_dequantizes_nothing_meanwhile(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(family)
    model, prompts = made.supernet.model, windows(2, 16)
    made.supernet.activate(made.space.uniform(made.spec, 3))
    expected, there = continues(model, prompts, NEW), linears(model)
    with dense(model) as count, monkeypatch.context() as patch:
        patch.delattr("supernet.linear.frozen_product")
        found = continues(model, prompts, NEW)
        assert linears(model) == []
    assert count == len(there) and linears(model) == there
    assert np.array_equal(found.tokens, expected.tokens)
    assert np.abs(found.margins - expected.margins).max() < 2 / STEPS
    again = continues(model, prompts, NEW)
    assert np.array_equal(again.margins, expected.margins)


@pytest.mark.parametrize("spare", [-1, 0, 20_000])
def test_it_takes_the_head_first_and_no_more_than_it_may(spare: int, made: Made) -> None:
    model = made.supernet.model
    room = made.spec.vocab_size * made.spec.hidden_size * FLOAT_BYTES + spare
    with dense(model, room) as count:
        plain = {name: module.weight for name, module in model.named_modules() if type(module) is nn.Linear}
        assert len(plain) == count > 0
        assert sum(weight.numel() for weight in plain.values()) * FLOAT_BYTES <= room
        assert ("lm_head" in plain) == (spare >= 0)


def test_what_has_an_adapter_or_is_pruned_stays(made: Made) -> None:
    supernet, (*makers, reader) = made.supernet, made.spec.feed_forwards[0]
    pruned = [linear.name for unit in (*makers, reader) for linear in unit.linears]
    for name in pruned:
        supernet.matrices[name].select(Choice(4, 16, kept=64))
    with dense(supernet.model):
        assert set(linears(supernet.model)) == set(pruned)
    supernet.adapt(ADAPTERS["scales"], (2,), 0)
    supernet.activate(made.space.uniform(made.spec, 2))
    with dense(supernet.model):
        assert linears(supernet.model) == [name for name in linears(supernet.model) if name != "lm_head"] != []


def test_an_error_within_leaves_the_model_as_it_was(made: Made) -> None:
    there = linears(made.supernet.model)
    with pytest.raises(KeyError), dense(made.supernet.model):
        raise KeyError
    assert linears(made.supernet.model) == there
