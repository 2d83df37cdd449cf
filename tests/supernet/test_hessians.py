"""Hessians block by block: those of one pass through the whole model, on every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from supernet import hessians
from supernet.blocks import AT_ONCE, decoder_layers
from supernet.choices import make_space
from supernet.hessians import POWER, add_square, fisher_hessians, mirrored
from supernet.labels import draw
from supernet.model import HEAD_TOKENS, capped, compute_dtype, hidden_states, spec_of_model
from supernet.quantize import head_unit, quantize
from supernet.quantizers import YAQA
from supernet.quantizers.factor import inverse_factor
from supernet.sensitivity import drawn, each_gradient
from supernet.spec import ModelSpec
from tests.tiny import FAMILIES, MIXTURES, tiny_model, windows


def linears_of(model: Any) -> list[str]:
    return [lin.name for unit in spec_of_model(model, "tiny").units if unit.layer is not None for lin in unit.linears]


def whole_pass(model: Any, ids: Tensor, seed: int, outputs: bool = False) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def collect(name: str, module: Any, x: Tensor, grad: Tensor) -> None:
        x, grad = (grad, x) if outputs else (x, grad)
        weighed = x * grad.square().sum(-1, keepdim=True).pow(POWER)
        found[name] = found.get(name, torch.zeros(())) + x.T @ weighed

    each_gradient(model, linears_of(model), ids, drawn(model, seed), collect)
    return found


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_blocks_in_turn_find_what_a_whole_pass_finds(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessians, "compute_dtype", lambda device: torch.float32)
    model, ids = tiny_model(family), windows(6)
    expected = whole_pass(model, ids, seed=3)
    found = list(fisher_hessians(model, linears_of(model), ids, seed=3))
    assert len(found) == len(decoder_layers(model))
    assert [set(sums) for sums in found] == [
        {name for name in expected if f"layers.{number}." in name} for number in reversed(range(len(found)))
    ]
    for sums in found:
        for name, hessian in sums.items():
            assert torch.allclose(hessian, expected[name], rtol=1e-3, atol=1e-4 * expected[name].abs().max().item())


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_outputs_are_those_of_the_block_at_hand(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the linears of blocks; the head, which is there too, has none."""
    monkeypatch.setattr(hessians, "compute_dtype", lambda device: torch.float32)
    model, ids, outputs = tiny_model(family), windows(6), dict[str, Tensor]()
    expected, seen = whole_pass(model, ids, seed=3, outputs=True), set()
    head = head_unit(model, spec_of_model(model, "tiny")).linears[0].name
    for sums in fisher_hessians(model, [*linears_of(model), head], ids, seed=3, outputs=outputs):
        assert outputs.keys() == sums.keys() - {head}
        for name, found in outputs.items():
            assert torch.allclose(found, expected[name], rtol=1e-3, atol=1e-4 * expected[name].abs().max().item())
        seen |= outputs.keys()
    assert seen == expected.keys()


@pytest.mark.parametrize("rows", [8192, 40])
def test_a_quantizer_is_given_what_each_linear_makes(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is given some rows at a time: then of these. Tables have none."""
    monkeypatch.setattr("supernet.quantize.TALL", rows)
    model, ids, outputs = tiny_model("llama"), windows(6), dict[str, Tensor]()
    spec = spec_of_model(model, "tiny")
    space = make_space(spec, (3,), 16, grid="int")
    found = quantize(model, spec, space, YAQA(), ids, seed=3)
    for sums in fisher_hessians(model, linears_of(model), ids, seed=3, outputs=outputs):
        for name, hessian in sums.items():
            weight, choice = model.get_submodule(name).weight.detach(), space.whole[unit_of(spec, name)][0]
            starts = range(0, len(weight), rows)
            parts = [(weight[at : at + rows], outputs[name][at : at + rows, at : at + rows]) for at in starts]
            alone = [YAQA().quantize(some, [choice], hessian, theirs)[choice].codes for some, theirs in parts]
            assert torch.equal(found[name][choice].codes, torch.cat(alone))


def unit_of(spec: ModelSpec, name: str) -> str:
    return next(unit.name for unit in spec.units if any(linear.name == name for linear in unit.linears))


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_the_head_is_a_linear_like_others(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its matrix is the embedding's, and where logits are scaled or capped after it."""
    monkeypatch.setattr(hessians, "compute_dtype", lambda device: torch.float32)
    model, ids, generator = tiny_model(family), windows(6), torch.Generator().manual_seed(3)
    name, expected = head_unit(model, spec_of_model(model, "tiny")).linears[0].name, torch.zeros(())
    for x in [
        part for some in ids.split(AT_ONCE) for part in hidden_states(model, some).flatten(0, 1).split(HEAD_TOKENS)
    ]:
        made = model.get_output_embeddings()(x).detach().requires_grad_()
        logits = capped(model, made)
        labels = draw(logits.detach().softmax(-1), generator)
        logits.log_softmax(-1).gather(1, labels).sum().backward()
        expected = expected + x.T @ (x * made.grad.square().sum(-1, keepdim=True).pow(POWER))
    first, *rest = fisher_hessians(model, [*linears_of(model), name], ids, seed=3)
    assert set(first) == {name}
    assert len(rest) == len(decoder_layers(model))
    assert torch.allclose(first[name], expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_the_model_is_left_as_it_was(family: str) -> None:
    model, ids = tiny_model(family), windows(2)
    before, places = model(ids).logits, {name: p.data_ptr() for name, p in model.named_parameters()}
    found = [hessian for sums in fisher_hessians(model, linears_of(model), ids, seed=0) for hessian in sums.values()]
    assert all(hessian.dtype == torch.float32 and hessian.isfinite().all() for hessian in found)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    assert torch.equal(model(ids).logits, before)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.skipif(compute_dtype(torch.device("cpu")) == torch.float32, reason="no bfloat16 here to compare with")
def test_bfloat16_finds_nearly_the_same() -> None:
    model, ids = tiny_model(), windows(6)
    expected = whole_pass(model, ids, seed=3)
    for sums in fisher_hessians(model, linears_of(model), ids, seed=3):
        for name, hessian in sums.items():
            assert torch.corrcoef(torch.stack([hessian.flatten(), expected[name].flatten()]))[0, 1] > 0.95


def test_the_seed_decides() -> None:
    model, ids = tiny_model(), windows(4)
    first, again, other = ([*fisher_hessians(model, linears_of(model), ids, seed)] for seed in (0, 0, 1))
    for one, two, three in zip(first, again, other, strict=True):
        for name in one:
            assert torch.equal(one[name], two[name])
            assert not torch.equal(one[name], three[name])


def test_half_of_a_square_mirrored_is_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(64, 1100, generator=generator), torch.rand(64, 1, generator=generator)
    total = torch.zeros(1100, 1100)
    for part, weight in zip(x.split(16), weights.split(16), strict=True):
        add_square(total, part, weight)
    assert torch.allclose(mirrored(total), x.T @ (x * weights), atol=1e-4)


def test_the_factor_of_a_large_hessian_is_that_of_its_inverse() -> None:
    x = torch.randn(3000, 1100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hessian = x.T @ x
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(1100)
    expected = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    assert torch.allclose(inverse_factor(hessian, 0.01), expected, rtol=1e-6, atol=1e-9)
