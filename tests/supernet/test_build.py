"""The supernet computes what its subnets' dense models compute, for every architecture."""

from __future__ import annotations

import copy
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from supernet.adapters import ADAPTERS, TrainedScales
from supernet.build import extract
from supernet.choices import make_space
from supernet.hessians import fisher_hessians
from supernet.model import hidden_states, spec_of_model
from supernet.quantize import FEW, head_unit, quantize
from supernet.quantizers import GPTQ, RTN
from supernet.shelf import InMemory, OnDisk
from supernet.space import Choice, Subnet
from tests.supernet.conftest import Made, make
from tests.tiny import FAMILIES, MIXTURES, tiny_model, windows


def mixed(made: Made, seed: int) -> Subnet:
    generator = torch.Generator().manual_seed(seed)
    pick = {u: c[int(torch.randint(len(c), (1,), generator=generator))] for u, c in made.space}
    return Subnet.of(pick)


def disturb(made: Made) -> None:
    """As if trained."""
    with torch.no_grad():
        for number, parameter in enumerate(p for m in made.supernet.matrices.values() for p in m.adapters.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.02)


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_active_subnet_is_its_extracted_model(family: str, adapter: str) -> None:
    made = make(family)
    made.supernet.adapt(ADAPTERS[adapter], (2, 3, 4), seed=0)
    disturb(made)
    ids = windows(2, 12)
    for seed in range(3):
        subnet = mixed(made, seed)
        made.supernet.activate(subnet)
        ours = made.supernet.model(ids).logits
        theirs = extract(made.supernet, subnet)(ids).logits
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_at_eight_bits_it_is_nearly_the_full_model(family: str) -> None:
    made = make(family)
    made.supernet.activate(made.space.uniform(made.spec, 8))
    ids = windows(1, 16)
    ours = made.supernet.model(ids).logits.log_softmax(-1)
    full = made.model(ids).logits.log_softmax(-1)
    assert torch.nn.functional.kl_div(ours, full, reduction="sum", log_target=True) / 16 < 0.01


def test_building_leaves_the_full_model_as_it_was() -> None:
    before = copy.deepcopy(tiny_model().state_dict())
    after = make().model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_codes_are_held_packed_and_floats_shared(made: Made) -> None:
    matrix = made.supernet.matrices["model.layers.0.mlp.up_proj"]
    for choice in matrix.choices:
        assert matrix.stored(choice).codes.numel() == 128 * 64 * choice.bits // 8
    dense = sum(p.numel() for n, p in made.supernet.model.named_parameters())
    assert dense == made.spec.float_parameters


def test_only_adapted_choices_have_adapters(made: Made) -> None:
    made.supernet.adapt(TrainedScales, (2, 3), seed=0)
    subnet = made.space.uniform(made.spec, 3)
    assert len(made.supernet.adapters(subnet)) == 14
    assert not made.supernet.adapters(made.space.uniform(made.spec, 4))
    assert not made.supernet.matrices["model.embed_tokens"].adapters


def test_a_choice_that_is_not_held_is_refused(made: Made) -> None:
    with pytest.raises(ValueError, match="got int5g16; it holds int2g16, int3g16, int4g16, int8g16"):
        made.supernet.activate(made.space.uniform(made.spec, 4).replace("model.layers.0.mlp.down_proj", Choice(5, 16)))


def test_a_group_size_that_does_not_divide_is_refused() -> None:
    spec = spec_of_model(tiny_model(), "tiny")
    with pytest.raises(ValueError, match="group_size must divide in_features, got 48 and 64; use 16, 32, 64"):
        make_space(spec, (4,), 48, grid="int")


def test_codes_are_those_of_a_whole_pass() -> None:
    """Blocks in turn calibrate each unit on what it reads in the full model."""
    model = tiny_model()
    spec = spec_of_model(model, "tiny")
    space = make_space(spec, (3,), 16, grid="int")
    found = quantize(model, spec, space, GPTQ(fisher=False), windows())
    units = [unit for unit in spec.units if not unit.is_table]
    sums: dict[str, torch.Tensor] = {}

    def watch(name: str, x: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0) + x.flatten(0, -2).T @ x.flatten(0, -2)

    for unit in units:
        name = unit.linears[0].name
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: watch(name, args[0]))
    for part in windows().split(4):
        hidden_states(model, part)
    for unit in units:
        choices = space.whole[unit.name]
        for linear in unit.linears:
            alone = GPTQ().quantize(model.get_submodule(linear.name).weight, choices, sums[unit.linears[0].name])
            for choice in choices:
                assert torch.equal(found[linear.name][choice].codes, alone[choice].codes)


def test_few_matrices_are_solved_at_once_where_memory_is_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However many cores there are; all of them otherwise. The codes are the same."""
    model, active, most, lock = tiny_model(), [0], [0], threading.Lock()
    spec = spec_of_model(model, "tiny")
    space = make_space(spec, (4,), 16, grid="int")

    class Slow(RTN):
        def quantize(self, *given: Any) -> Any:
            with lock:
                active[0] += 1
                most[0] = max(most[0], active[0])
            time.sleep(0.02)
            with lock:
                active[0] -= 1
            return RTN().quantize(*given)

    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    found = []
    for shelf, at_once in ((InMemory(), range(FEW + 1, 9)), (OnDisk(tmp_path / "shelf"), (1, FEW))):
        most[0] = 0
        found.append(quantize(model, spec, space, Slow(), windows(), shelf=shelf))
        assert most[0] in at_once
    for linear, choices in found[0].items():
        for choice, weight in choices.items():
            assert torch.equal(weight.codes, found[1][linear][choice].codes)


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_a_head_is_solved_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Of its own and a tied one; an embedding by itself is rounded to nearest."""
    model = tiny_model(family)
    spec = spec_of_model(model, "tiny")
    space = make_space(spec, (4,), 16, grid="int")
    head, (embedding, *_) = head_unit(model, spec).linears[0].name, spec.units
    hessian = next(fisher_hessians(model, [head], windows(), seed=0))[head]
    weight, choices = model.get_submodule(head).weight, space[head]
    alone = GPTQ().quantize(weight, choices, hessian)
    found = []
    for rows in (10**6, 50):
        monkeypatch.setattr("supernet.quantize.TALL", rows)
        found.append(quantize(model, spec, space, GPTQ(), windows()))
    plain = RTN().quantize(weight, choices)
    for choice in choices:
        for weights in found:
            assert torch.equal(weights[head][choice].codes, alone[choice].codes)
        assert not torch.equal(alone[choice].codes, plain[choice].codes)
        if not spec.tied:
            name = embedding.linears[0].name
            nearest = RTN().quantize(model.get_submodule(name).weight, choices)
            assert torch.equal(found[1][name][choice].codes, nearest[choice].codes)


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_two_kinds_of_text_count_alike_for_the_head(family: str) -> None:
    """However many windows each has; what is no head is told of the first alone."""
    model = tiny_model(family)
    spec = spec_of_model(model, "tiny")
    space = make_space(spec, (4,), 16, grid="int")
    head, others = head_unit(model, spec).linears[0].name, windows(3, seed=7)
    one, other = (next(fisher_hessians(model, [head], part, seed=0))[head] for part in (windows(), others))
    (choice,) = (c for c in space[head] if c.bits == 4)
    weight = model.get_submodule(head).weight
    both = GPTQ().quantize(weight, [choice], one / one.trace() + other / other.trace())[choice].codes
    alone = quantize(model, spec, space, GPTQ(), windows())
    found = quantize(model, spec, space, GPTQ(), windows(), others=others)
    assert torch.equal(found[head][choice].codes, both)
    assert not torch.equal(found[head][choice].codes, alone[head][choice].codes)
    for unit in spec.units:
        for linear in unit.linears if not unit.is_table else ():
            for same in space[unit.name]:
                assert torch.equal(found[linear.name][same].codes, alone[linear.name][same].codes)


def test_changing_dtype_and_back_loses_nothing(made: Made) -> None:
    ids = windows(1, 8)
    before = made.supernet.model(ids).logits
    made.supernet.set_dtype(torch.bfloat16)
    assert made.supernet.model(ids).logits.dtype == torch.bfloat16
    made.supernet.set_dtype(torch.float32)
    assert torch.equal(made.supernet.model(ids).logits, before)


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_long_tables_are_made_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Of a head of its own and of a tied one, forward and backward."""
    found = []
    for rows in (10**6, 50):
        monkeypatch.setattr("supernet.linear.ROWS", rows)
        monkeypatch.setattr("supernet.adapters.base.LONG", rows)
        model = make(family).supernet.model
        hidden = torch.ones(3, 64, requires_grad=True)
        logits = model.get_output_embeddings()(hidden)
        logits.square().sum().backward()
        found.append((logits.detach(), hidden.grad, model.get_input_embeddings()(windows(1))))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*found, strict=True))
