"""Adapters on trial: what loses is dropped, by bits and by unit, and nothing else."""

from __future__ import annotations

import pytest
import torch

from supernet.adapters import ADAPTERS
from supernet.evaluate import Reference, evaluate
from supernet.model import hidden_states
from supernet.trial import SUSPECTING, removal_costs, try_adapters
from tests.supernet.conftest import Made, make
from tests.supernet.test_build import disturb
from tests.tiny import windows

BITS, OTHER = 8, 4
SPOILED = "model.layers.1.mlp.down_proj"
WRONG, SPOIL = 0.8, 1.0  # the factor that scales are off by; what a bad adapter adds to it


def repaired(spoiled: tuple[str, ...] = ()) -> Made:
    """A supernet whose scales at `BITS` are all wrong, with adapters that put them right, but for `spoiled`."""
    made = make(bits=(OTHER, BITS))
    supernet = made.supernet
    subnet = made.space.uniform(made.spec, BITS)
    supernet.adapt(ADAPTERS["scales"], (OTHER, BITS), seed=0)
    edge = (2**BITS - 1) / 2
    for unit in made.spec.units:
        for linear in unit.linears if not unit.is_table else ():
            matrix = supernet.matrices[linear.name]
            stored = matrix.stored(subnet[unit.name])
            stored.scale.mul_(WRONG)  # what is stored itself
            adapter = matrix.adapter(subnet[unit.name])
            assert adapter is not None
            adapter.delta.data.fill_(edge * (SPOIL if unit.name in spoiled else 1 / WRONG - 1))
    return made


def holders(made: Made, bits: int) -> set[str]:
    """Units that have an adapter at these bits."""
    subnet = made.space.uniform(made.spec, bits)
    matrices = made.supernet.matrices
    return {u.name for u in made.spec.units if matrices[u.linears[0].name].adapter(subnet[u.name]) is not None}


def own(made: Made) -> Reference:
    """Held-out windows of what was trained on."""
    return Reference.of(made.model, windows(4, seed=1))


def test_adapters_that_win_stay() -> None:
    made = repaired()
    everyone = holders(made, BITS)
    verdict = try_adapters(made.model, made.supernet, windows(8), own(made), seed=0)[str(BITS)]
    assert verdict.having < verdict.without
    assert verdict.dropped == ()
    assert verdict.kept == verdict.having
    assert holders(made, BITS) == everyone


def test_a_unit_that_loses_is_dropped_alone() -> None:
    made = repaired((SPOILED,))
    everyone = holders(made, BITS)
    verdict = try_adapters(made.model, made.supernet, windows(12), own(made), seed=0)[str(BITS)]
    assert verdict.dropped == (SPOILED,)
    assert verdict.kept < verdict.having < verdict.without
    assert holders(made, BITS) == everyone - {SPOILED}
    subnet = made.space.uniform(made.spec, BITS)
    measured = evaluate(made.supernet, [subnet], Reference.of(made.model, windows(12)[SUSPECTING:]))[0].kl
    assert measured == pytest.approx(verdict.kept)


def test_a_unit_that_serves_the_text_it_was_trained_on_stays() -> None:
    made = repaired((SPOILED,))
    everyone = holders(made, BITS)
    having = made.space.uniform(made.spec, BITS)
    made.supernet.activate(having)
    kept = Reference(
        windows(4, seed=1), hidden_states(made.supernet.model, windows(4, seed=1)).detach(), own(made).head
    )
    verdict = try_adapters(made.model, made.supernet, windows(8), kept, seed=0)[str(BITS)]  # which says: keep it
    assert verdict.dropped == ()
    assert holders(made, BITS) == everyone


def test_a_bit_width_that_loses_is_dropped_whole_and_no_other() -> None:
    made = repaired()
    for name, parameter in made.supernet.model.named_parameters():
        if f"int{OTHER}" in name:
            parameter.data.fill_(20.0)
    everyone = holders(made, BITS)
    verdicts = try_adapters(made.model, made.supernet, windows(8), own(made), seed=0)
    assert verdicts[str(OTHER)].having > verdicts[str(OTHER)].without == verdicts[str(OTHER)].kept
    assert set(verdicts[str(OTHER)].dropped) == everyone
    assert holders(made, OTHER) == set()
    assert holders(made, BITS) == everyone


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_a_removal_costs_is_what_it_is_measured_to_cost(adapter: str) -> None:
    """Within a factor of about two, and which way it goes: the Fisher form takes tokens for independent."""
    made = make(bits=(BITS,))
    supernet, ids = made.supernet, windows(64)
    supernet.adapt(ADAPTERS[adapter], (BITS,), seed=0, **ADAPTERS[adapter].options(len(made.spec.units)))
    subnet = made.space.uniform(made.spec, BITS)
    disturb(made)
    for module in supernet.adapters(subnet).values():
        for parameter in module.parameters():
            parameter.data *= 2.0**BITS if adapter == "scales" else 0.4  # counted in codes, or in weights
    before = {name: value.clone() for name, value in supernet.model.state_dict().items()}
    costs = removal_costs(made.model, supernet, subnet, ids, seed=0)
    after = supernet.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    reference = Reference.of(made.model, ids)
    having = evaluate(supernet, [subnet], reference)[0].kl
    measured = {}
    for unit in costs:
        kept = {name: matrix.adapters for name, matrix in supernet.matrices.items()}
        linears = next(u.linears for u in made.spec.units if u.name == unit)
        for linear in linears:
            supernet.matrices[linear.name].drop([subnet[unit]])
        measured[unit] = evaluate(supernet, [subnet], reference)[0].kl - having
        for name, matrix in supernet.matrices.items():
            matrix.adapters = kept[name]
    counting = {unit: cost for unit, cost in measured.items() if abs(cost) > 0.02 * having}
    assert counting
    for unit, cost in counting.items():
        assert 0.5 < costs[unit] / cost < 2.2
