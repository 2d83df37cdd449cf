"""Learned rounding on every architecture: it lowers the KL of what it is given, and leaves plain codes behind."""

from __future__ import annotations

import copy

import pytest
import torch

from supernet.adapters import Rounding
from supernet.blocks import decoder_layers, first_inputs, layer_arguments, output_of
from supernet.evaluate import Reference, evaluate
from supernet.gate import Gate
from supernet.grids import IntegerGrid
from supernet.progress import silent
from supernet.quantizers import RTN
from supernet.refiners import Learned, learned
from supernet.refiners.learned import (
    HELD_OUT,
    MOST_STEPS,
    SCALE_RATE,
    Chain,
    _batches,
    _Descent,
    _parts,
    _settled,
    output_weights,
)
from supernet.refiners.outcome import losses_at_output
from supernet.refiners.pace import Pace
from supernet.refiners.starts import INWARD, STARTS
from supernet.refiners.turn import Block, Turn
from supernet.space import Choice
from tests.supernet.conftest import Made, make
from tests.tiny import FAMILIES, tiny_model, windows


def losses(made: Made, bits: tuple[int, ...]) -> list[float]:
    reference = Reference.of(made.model, windows(4, 32, seed=9))
    return [q.kl for q in evaluate(made.supernet, [made.space.uniform(made.spec, b) for b in bits], reference)]


def refine(made: Made, steps: int = 30) -> None:
    Learned(steps=steps, batch=4).refine(made.model, made.model, made.supernet, windows(96, 32), 0, silent)


@pytest.mark.parametrize(("family", "grid"), [*((family, "int") for family in FAMILIES), ("llama", "sym")])
def test_it_lowers_the_loss_of_every_bit_width(family: str, grid: str) -> None:
    made = make(family, bits=(2, 3), quantizer=Learned.begins, grid=grid)
    before = losses(made, (2, 3))
    refine(made)
    after = losses(made, (2, 3))
    assert all(new < old for new, old in zip(after, before, strict=True)), (before, after)
    assert not any(matrix.adapters for matrix in made.supernet.matrices.values())
    assert {w.parts["scale"].dtype for m in made.supernet.weights().values() for w in m.values()} == {
        torch.float16 if grid == "sym" else torch.float32
    }


def test_the_same_seed_learns_the_same_codes() -> None:
    found = []
    for _ in range(2):
        made = make(bits=(2,), quantizer=Learned.begins)
        refine(made, steps=3)
        found.append(made.supernet.weights())
    for name, choices in found[0].items():
        for choice, weight in choices.items():
            assert torch.equal(weight.codes, found[1][name][choice].codes)
            assert torch.equal(weight.scale, found[1][name][choice].scale)


def turn_of(made: Made, bits: int) -> Turn:
    """The first block's."""
    text, layers = windows(8, 32), decoder_layers(made.model)
    inputs, arguments = first_inputs(made.model, text), layer_arguments(made.model, text[:1])[0]
    tokens, channels = output_weights(made.model, layers, text, 0, silent)
    block = Block(layers[0], decoder_layers(made.supernet.model)[0], arguments, tokens[0], channels[0])
    return Turn(block, _parts(made.model, made.model, made.supernet, 0, bits), inputs, inputs, 1.0, slice(6, 8))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "reach"), [("nearest", 0.5), ("gptq", 0.5 * INWARD)])
def test_a_start_has_every_weight_in_its_codes_cell(family: str, name: str, reach: float) -> None:
    grid, turn = IntegerGrid(), turn_of(make(family, bits=(3,), quantizer=Learned.begins), 3)
    moved = 0
    for part, (found, weight) in zip(turn.parts, STARTS[name](turn), strict=True):
        codes = grid.codes(found)
        scale, zero = (p.float().repeat_interleave(part.choice.group_size, 1) for p in (found.scale, found.zero))
        inside = (codes > 0) & (codes < 7)  # beyond the outer cells a weight may lie anywhere
        assert (weight / scale + zero - codes)[inside].abs().max() <= reach + 1e-4
        moved += int((codes != grid.codes(part.nearest)).sum())
    assert (moved > 0) == (name == "gptq")


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_at_the_output_are_those_of_the_whole_model(family: str) -> None:
    model, text = tiny_model(family, num_hidden_layers=3), windows(4, 32)
    arguments, exact = layer_arguments(model, text[:1]), first_inputs(model, text)
    layers = decoder_layers(model)
    states = [output_of(layers[0], exact, arguments[0])]
    other = copy.deepcopy(model)
    for parameter in decoder_layers(other)[0].parameters():
        parameter.mul_(1.1)
    states += [states[0].clone(), output_of(decoder_layers(other)[0], exact, arguments[0])]
    same, moved = losses_at_output(model, 0, arguments, text, states)
    full, ours = (m(input_ids=text, use_cache=False).logits.float().log_softmax(-1) for m in (model, other))
    assert same == 0.0
    assert moved == pytest.approx(((full.exp() * (full - ours)).sum() / text.numel()).item(), rel=1e-3)


def test_the_chain_that_costs_the_model_least_goes_on() -> None:
    made = make(bits=(2, 3), quantizer=Learned.begins)
    turn, text = turn_of(made, 2), windows(8, 32)
    target = turn.block.through(turn.block.layer, turn.inputs)
    arguments = layer_arguments(made.model, text[:1])
    near, far = target + 0.01, target * 2
    chains = {2: {"nearest": Chain(far), "gptq": Chain(near)}, 3: {"nearest": Chain(near), "gptq": Chain(far)}}
    best = _settled(made.model, 0, arguments, text, target, chains)
    assert [(bits, list(tried)) for bits, tried in best.items()] == [(2, ["gptq"]), (3, ["nearest"])]
    assert all(chain.inputs is near for tried in best.values() for chain in tried.values())


def test_a_settled_chain_has_its_codes_whatever_was_learned_after_it() -> None:
    turn = turn_of(make(bits=(2,), quantizer=Learned.begins), 2)
    batches = _batches(8, 4, 4, torch.Generator().manual_seed(0), torch.device("cpu"))
    chains, held = [], []
    for start in STARTS.values():
        chain = Chain(turn.inputs)
        chain.learn(turn, start, batches, Gate())
        chain.keep(turn.parts, turn.inputs.device)
        chains.append(chain)
        held.append([part.matrix.stored(part.choice).codes.clone() for part in turn.parts])
    assert not all(map(torch.equal, *held))
    chains[0].settle()
    assert all(
        torch.equal(part.matrix.stored(part.choice).codes, codes)
        for part, codes in zip(turn.parts, held[0], strict=True)
    )
    through = turn.block.through(turn.block.ours, turn.inputs)
    assert torch.equal(through, chains[0].inputs)


@pytest.mark.parametrize("layers", [2, 5])
def test_first_blocks_learn_from_every_start_and_others_as_the_best_of_them(
    monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    tried: list[str] = []
    for name, start in STARTS.items():
        monkeypatch.setitem(STARTS, name, lambda turn, name=name, start=start: (tried.append(name), start(turn))[1])
    made = make(bits=(2,), quantizer=Learned.begins, num_hidden_layers=layers)
    recorded = Learned(4, batch=4).refine(made.model, made.model, made.supernet, windows(8, 32), 0, silent)
    first = min(layers, 3)
    assert tried == list(STARTS) * first + [recorded["starts"]["2"]] * (layers - first)


@pytest.mark.parametrize("start", STARTS)
def test_it_is_as_if_the_best_start_had_been_the_only_one(monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    found = []
    for only in (False, True):
        made = make(bits=(2,), quantizer=Learned.begins, num_hidden_layers=4)
        with monkeypatch.context() as patch:
            if only:
                patch.setattr(learned, "STARTS", {start: STARTS[start]})
            patch.setattr(learned, "losses_at_output", lambda *given: [float(s != start) for s in learned.STARTS])
            Learned(4, batch=4).refine(made.model, made.model, made.supernet, windows(8, 32), 0, silent)
        found.append(made.supernet.weights())
    for name, choices in found[0].items():
        for choice, weight in choices.items():
            assert torch.equal(weight.codes, found[1][name][choice].codes)
            assert torch.equal(weight.scale, found[1][name][choice].scale)


def test_a_steady_gradient_moves_an_offset_to_the_edge_of_its_cell_and_one_that_turns_round_leaves_it() -> None:
    full = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    choice = Choice(3, 16)
    adapter = Rounding(RTN().quantize(full, [choice])[choice], torch.Generator(), full, rank=None)
    steps, moved = 10, []
    descent = _Descent([adapter], steps)
    for step in range(steps):
        adapter.offset.grad = torch.ones_like(adapter.offset) * 1e-6  # however small
        adapter.offset.grad[1::2] *= (-1) ** step
        adapter.delta.grad = -torch.ones_like(adapter.delta)
        descent.step()
        moved.append(adapter.offset[0, 0].item())
    rates = torch.tensor([(1 - step / steps) / steps for step in range(steps)])
    assert torch.tensor(moved) == pytest.approx(-rates.cumsum(0).clamp(max=0.5))
    assert adapter.delta.detach() == pytest.approx(torch.full((8, 1), SCALE_RATE * rates.sum().item()))
    assert adapter.offset[1::2].abs().max() < 0.06


def test_every_window_is_learned_from_before_any_comes_again() -> None:
    batches = _batches(10, 4, 5, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert [len(rows) for rows in batches] == [4] * 5
    order = torch.cat(list(batches))
    for part in order.split(10):
        assert sorted(part.tolist()) == list(range(10))
    assert [len(rows) for rows in _batches(3, 8, 2, torch.Generator().manual_seed(0), torch.device("cpu"))] == [3, 3]


def test_tables_and_unused_choices_stay() -> None:
    made = make(bits=(2, 4), quantizer=Learned.begins)
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


def test_minutes_become_steps_and_timing_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for quantizer in (Learned(steps=8, batch=4), Learned(minutes=1e-6, batch=4)):
        made = make(bits=(2,), quantizer=Learned.begins)
        recorded = quantizer.refine(made.model, made.model, made.supernet, windows(8, 32), 0, silent)
        assert recorded["block_steps"] == 8
        found.append(made.supernet.weights()["model.layers.0.mlp.up_proj"][Choice(2, 16)])
    assert torch.equal(found[0].codes, found[1].codes)
    made = make(bits=(2,), quantizer=Learned.begins)
    recorded = Learned(minutes=0.3).refine(made.model, made.model, made.supernet, windows(8, 32), 0, silent)
    assert 8 < recorded["block_steps"] <= MOST_STEPS
    monkeypatch.setattr(learned, "MOST_STEPS", 12)  # all of them would take their time
    made = make(bits=(2,), quantizer=Learned.begins)
    recorded = Learned(minutes=1000.0).refine(made.model, made.model, made.supernet, windows(8, 32), 0, silent)
    assert recorded["block_steps"] == 12


def test_steps_that_fit() -> None:
    pace = Pace(step=0.1, start=1.0, window=0.5)
    assert pace.steps(100.0, turns=10, batch=4, windows=1000) == 30  # 90 s are left, and 10 steps of 4 windows take 3
    assert pace.steps(100.0, turns=10, batch=4, windows=40) == 70  # 20 s for the windows, 1 s for 10 steps
    assert pace.steps(5.0, turns=10, batch=4, windows=40) < 0


def test_only_windows_that_come_up_are_weighed() -> None:
    made = make(bits=(2,), quantizer=Learned.begins)
    seen: list[int] = []
    report = lambda what, done, total: seen.append(total) if what == "weigh errors" else None  # noqa: E731
    Learned(steps=3, batch=4).refine(made.model, made.model, made.supernet, windows(96, 32), 0, report)
    assert set(seen) == {12 + HELD_OUT}


def test_wide_codes_are_left_as_they_are() -> None:
    made = make(bits=(8,), quantizer=Learned.begins)
    for quantizer in (Learned(), Learned(minutes=1.0)):
        assert quantizer.refine(made.model, made.model, made.supernet, windows(8, 32), 0, silent) == {}
