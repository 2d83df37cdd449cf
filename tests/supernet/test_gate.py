"""Whatever improves a model: fed garbage, it leaves the model no worse than it found it, and says so in one line."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch

from supernet.adapters import ADAPTERS
from supernet.awq import channel_scales
from supernet.choices import make_space
from supernet.clock import Clock
from supernet.create import create
from supernet.evaluate import Reference, evaluate
from supernet.gate import Gate, Tally, lost_widths
from supernet.model import spec_of_model
from supernet.progress import silent
from supernet.quantizers import GPTQ, QUANTIZERS, RTN
from supernet.recipe import Recipe
from supernet.refiners import REFINERS, Learned, Refiner, learned
from supernet.rounded import rounding_losses
from supernet.start import Start
from supernet.trial import try_adapters
from tests.supernet.conftest import Made, make
from tests.tiny import tiny_model, windows

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
        assert gate.settle("work", 1.0, 1.0 + 1e-7, lambda: back.append("the same, rounded")) == 1.0 + 1e-7
        assert gate.settle("work", 1.0, 2.0, lambda: back.append("worse")) == 1.0
        assert gate.settle("work", 1.0, math.nan, lambda: back.append("nan")) == 1.0
        assert gate.settle("work", math.nan, 3.0, lambda: back.append("was nan")) == 3.0
    assert back == ["worse", "nan"]
    assert gate.to_json() == {"work": {"tried": 6, "returned": 2}}
    assert [r.message for r in caplog.records] == ["work: 2 of 6 places went back to their start, which loses less"]


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


class Spoiled(GPTQ):
    """Solves another matrix than it was given."""

    def solve(self, weight, choices, hessian):  # type: ignore[no-untyped-def]
        return super().solve(weight.flip(0), choices, hessian)


class Spoiling(Refiner):
    """Leaves scales that are no numbers at 3 bits, and the others as they were."""

    begins = RTN()

    def within(self, steps: int | None, minutes: float | None) -> Spoiling:
        return self

    def refine(self, full, teacher, supernet, *given):  # type: ignore[no-untyped-def]
        for matrix in supernet.matrices.values():
            for choice in matrix.choices:
                if choice.bits == 3:
                    stored = matrix.stored(choice)
                    matrix.store(stored.with_parts(scale=stored.scale * math.nan))
        return {}


def started(bits: tuple[int, ...]) -> Start:
    model = tiny_model()
    spec = spec_of_model(model, "tiny")
    start = Start(model, spec, make_space(spec, bits, 16, grid="int"), Gate(), silent)
    start.look(Reference.of(model, HELD_OUT))
    return start


def test_channel_scales_that_are_garbage() -> None:
    start = started((2, 3))
    scales = channel_scales(start.model, start.spec, windows(), 0.25)
    wild = {key: scale * torch.linspace(1e-3, 1e3, len(scale)) for key, scale in scales.items()}
    assert not start.better_scaled(wild)
    assert not start.better_scaled({key: scale * math.nan for key, scale in scales.items()})
    assert start.gate.to_json() == {"channel scales": {"tried": 2, "returned": 2}}


def test_solved_codes_that_are_garbage_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUANTIZERS, "gptq", Spoiled)
    start = started((2, 3))
    supernet = start.quantized(windows(), Recipe(quantizer="gptq", group_size=16, bits=(2, 3)))
    spoiled = {"solved codes": {"tried": 2, "returned": 2}, "solved codes of the head": {"tried": 2, "returned": 2}}
    assert start.gate.to_json() == spoiled
    made = Made(start.model, start.spec, start.space, supernet)
    assert losses(made) == pytest.approx(start.rounding, rel=1e-3)
    assert start.losses == start.rounding


def test_a_refined_bit_width_that_is_garbage_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REFINERS, "learned", Spoiling)
    start, recipe = started((2, 3)), Recipe(quantizer="learned", group_size=16, bits=(2, 3), steps=1)
    supernet = start.quantized(windows(), recipe)
    before = dict(start.losses)
    start.refined(supernet, windows(), recipe, Clock(None))
    assert start.gate.tallies["learned rounding of whole bit-widths"] == Tally(tried=2, returned=1)
    assert losses(Made(start.model, start.spec, start.space, supernet)) == pytest.approx(before, rel=1e-5)


def test_training_at_a_rate_a_thousand_times_too_high(source: str, data: str, tmp_path: Path) -> None:
    recipe = Recipe(
        bits=(2, 4), group_size=16, steps=3, batch=2, window_tokens=16, data=data, quantizer="rtn", learning_rate=5.0
    )
    info = create(source, tmp_path / "out", recipe).info
    assert info["gate"]["trained adapters"] == {"tried": 2, "returned": 2}
    assert info["lost"] == {}
    assert all(info["held_out"]["end"][b] <= info["held_out"]["start"][b] * 1.0001 for b in ("2", "4"))
