"""Decoder blocks by themselves: they compute what the whole model does, on every architecture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from supernet.blocks import decoder_layers, first_inputs, input_sums, last_states, layer_arguments, output_of, placed
from supernet.model import hidden_states, removed_after, spec_of_model
from supernet.work import home
from tests.tiny import FAMILIES, tiny_model, windows


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_that_go_together_are_as_by_themselves(family: str) -> None:
    model, ids = tiny_model(family), windows(3, 48)
    for window, found in zip(ids, last_states(model, ids), strict=True):
        assert torch.equal(found, hidden_states(model, window.unsqueeze(0)))


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_in_turn_are_the_model(family: str) -> None:
    model, ids = tiny_model(family), windows(3)
    state = first_inputs(model, ids)
    for layer, arguments in zip(decoder_layers(model), layer_arguments(model, ids[:1]), strict=True):
        state = output_of(layer, state, arguments)
    norm = getattr(model.base_model, "norm", None) or model.base_model.final_layernorm
    assert torch.equal(norm(state), hidden_states(model, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_over_inputs_are_those_of_a_whole_pass(family: str) -> None:
    model, ids = tiny_model(family), windows(6)
    linears = [
        lin.name for unit in spec_of_model(model, family).units if unit.layer is not None for lin in unit.linears
    ]
    seen: dict[str, list[Tensor]] = {name: [] for name in linears}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
        for name in linears
    ]
    with removed_after(hooks):
        hidden_states(model, ids)
    found = list(input_sums(model, linears, ids, lambda x: x.T @ x))
    assert len(found) == len(decoder_layers(model))
    assert set().union(*found) == set(linears)
    for sums in found:
        for name, total in sums.items():
            x = torch.cat(seen[name]).flatten(0, -2)
            assert torch.allclose(total, x.T @ x, rtol=1e-4, atol=1e-4)


def test_a_block_goes_and_comes_back_as_it_was() -> None:
    layer = nn.Linear(4, 4)
    before = {name: parameter.data_ptr() for name, parameter in layer.named_parameters()}
    with pytest.raises(KeyError), placed(layer, torch.device("meta")):
        assert layer.weight.is_meta
        raise KeyError
    assert {name: parameter.data_ptr() for name, parameter in layer.named_parameters()} == before


def test_a_block_in_another_dtype_comes_back_exactly() -> None:
    layer = nn.BatchNorm1d(4)  # with buffers
    layer.running_mean.fill_(1 / 3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with placed(layer, torch.device("cpu"), torch.bfloat16):
        assert layer.weight.dtype == layer.running_mean.dtype == torch.bfloat16
    after = layer.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())


@pytest.mark.parametrize(("free", "place"), [(10**9, "cuda"), (10**3, "cpu")])
def test_a_model_that_does_not_fit_waits_in_memory(monkeypatch: pytest.MonkeyPatch, free: int, place: str) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    assert home(tiny_model(), torch.device("cuda")).type == place


def test_on_a_cpu_a_model_stays_there() -> None:
    assert home(tiny_model(), torch.device("cpu")).type == "cpu"
