"""Whatever improves a model: fed garbage, it leaves the model no worse than it found it, and says so in one line."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from supernet.evaluate import Reference, evaluate
from supernet.gate import Gate, lost_widths
from supernet.progress import silent
from supernet.refiners import Learned, learned
from supernet.rounded import rounding_losses
from supernet.trial import try_adapters
from tests.supernet.conftest import Made, make
from tests.tiny import windows

HELD_OUT = windows(4, seed=9)


def losses(made: Made) -> dict[int, float]:
    bits = made.space.bits(made.spec)
    found = evaluate(
        made.supernet, [made.space.uniform(made.spec, b) for b in bits], Reference.of(made.model, HELD_OUT)
    )
    return {b: quality.kl for b, quality in zip(bits, found, strict=True)}


def test_what_lost_goes_back_and_what_is_no_number_has_lost(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bitfleet")
    gate, back = Gate(), []
    with gate.over("work", "places"):
        assert gate.settle("work", 1.0, 0.5, lambda: back.append("better")) == 0.5
        assert gate.settle("work", 1.0, 1.0, lambda: back.append("the same")) == 1.0
        assert gate.settle("work", 1.0, 2.0, lambda: back.append("worse")) == 1.0
        assert gate.settle("work", 1.0, math.nan, lambda: back.append("nan")) == 1.0
        assert gate.settle("work", math.nan, 3.0, lambda: back.append("was nan")) == 3.0
    assert back == ["worse", "nan"]
    assert gate.to_json() == {"work": {"tried": 5, "returned": 2}}
    assert [r.message for r in caplog.records] == ["work: 2 of 5 places went back to their start, which loses less"]


@pytest.mark.parametrize("garbage", ["a rate x 1000", "nan gradients in one block"])
def test_learned_rounding_fed_garbage(monkeypatch: pytest.MonkeyPatch, garbage: str) -> None:
    made = make(bits=(2, 3), quantizer=Learned.begins)
    made.supernet.set_dtype(torch.float32)
    before = losses(made)
    if garbage == "a rate x 1000":
        monkeypatch.setattr(learned, "SCALE_RATE", 1000 * learned.SCALE_RATE)
    else:
        weight = made.supernet.matrices["model.layers.1.mlp.up_proj"]
        weight.register_full_backward_hook(lambda module, into, out: tuple(g * math.nan for g in into))
    gate = Gate()
    Learned(steps=8, batch=4).refine(made.model, made.model, made.supernet, windows(32), 0, silent, gate)
    after = losses(made)
    assert gate.tallies[learned.IMPROVER].returned > 0
    assert all(after[bits] <= before[bits] * 1.02 for bits in before), (before, after)


@pytest.mark.parametrize("value", [math.nan, 30.0])
def test_trained_adapters_that_are_garbage(caplog: pytest.LogCaptureFixture, value: float) -> None:
    from supernet.adapters import ADAPTERS

    caplog.set_level(logging.INFO, "bitfleet")
    made = make(bits=(2, 3))
    before = losses(made)
    made.supernet.adapt(ADAPTERS["scales"], (2, 3), seed=0)
    for name, parameter in made.supernet.model.named_parameters():
        if "int2" in name and "layers.0" in name:
            parameter.data.fill_(value)
    gate = Gate()
    try_adapters(made.model, made.supernet, windows(8), Reference.of(made.model, HELD_OUT), 0, gate=gate)
    assert gate.to_json() == {"trained adapters": {"tried": 2, "returned": 1}}
    assert [r.message for r in caplog.records] == [
        "trained adapters: 1 of 2 bit-widths went back to their start, which loses less"
    ]
    assert losses(made) == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_plain_rounding_is_a_supernet_of_nearest_codes(family: str) -> None:
    made = make(family)
    exact = {name: value.clone() for name, value in made.model.state_dict().items()}
    reference = Reference.of(made.model, HELD_OUT)
    found = rounding_losses(made.model, made.spec, made.space, reference, (2, 3, 4, 8))
    assert found == pytest.approx(losses(made), rel=1e-3, abs=1e-6)
    assert all(torch.equal(value, exact[name]) for name, value in made.model.state_dict().items())


def test_a_width_that_lost_is_named_with_what_it_lost_to() -> None:
    rounding, start = {2: 2.0, 3: 0.4, 4: 0.1, 8: 0.0004}, {2: 1.0, 3: 0.3, 4: 0.1, 8: 0.0004}
    assert lost_widths({2: 0.9, 3: 0.31, 4: 0.1, 8: 0.0008}, rounding, start) == {}
    assert lost_widths({2: 2.5, 3: 0.35, 4: math.nan, 8: 0.0004}, rounding, start) == {
        2: ("plain rounding", 2.5, 2.0),
        3: ("the codes that training started from", 0.35, 0.3),
        4: ("plain rounding", pytest.approx(math.nan, nan_ok=True), 0.1),
    }
