"""Units that are tied somewhere: there and back, what they may be, what they lose, and what a training draws."""

from __future__ import annotations

import pytest

from records.errors import InputError
from supernet.adapters import TrainedScales
from supernet.choices import make_space
from supernet.model import spec_of_model
from supernet.sensitivity_table import SensitivityTable
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec
from supernet.ties import apart, siblings, tied, tied_space, tied_table, together
from supernet.train import trained_space
from tests.supernet.conftest import make
from tests.tiny import FAMILIES, tiny_model

LAYER = "model.layers.0"
QKV = tuple(f"{LAYER}.self_attn.{part}_proj" for part in "qkv")
GATE, UP, DOWN = (f"{LAYER}.mlp.{part}_proj" for part in ("gate", "up", "down"))
ROLES = {
    "phi": ["embedding", "head", *["qkv", "dense", "fc1", "fc2"] * 2],
    "phi3": ["embedding", *["o", "qkv_proj", "gate_up_proj", "down"] * 2],
}
LLAMA_LIKE = ["embedding", *["qkv", "o", "gate_up", "down"] * 2]


def whole(spec: ModelSpec) -> ModelSpec:
    return tied(spec, siblings(spec))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_spec_has_the_same_linears_in_fewer_units(family: str) -> None:
    spec = spec_of_model(tiny_model(family), family)
    found = whole(spec)
    roles = [role for role in ROLES.get(family, LLAMA_LIKE) if role != "head" or not spec.tied]
    assert [unit.role for unit in found.units if unit.role != "head"] == [role for role in roles if role != "head"]
    linears = [[linear for unit in one.units for linear in unit.linears] for one in (spec, found)]
    assert linears[0] == linears[1]
    assert siblings(found) == ()
    assert tied(spec, ()) == spec
    assert [len(block) for block in found.feed_forwards] == [2, 2]


def test_a_subnet_goes_there_and_back() -> None:
    spec = spec_of_model(tiny_model(), "tiny")
    space = make_space(spec, (2, 4, 8), 16, grid="int")
    alike = space.uniform(spec, 4).replace(DOWN, Choice(2, 16))
    for unit in QKV:
        alike = alike.replace(unit, Choice(8, 16))
    found = together(alike, whole(spec), "it")
    assert found[f"{LAYER}.self_attn.qkv"] == Choice(8, 16)
    assert found[DOWN] == Choice(2, 16)
    assert apart(found, whole(spec), spec) == alike
    assert together(found, whole(spec), "it") == found
    assert alike.mean_bits(spec) == found.mean_bits(whole(spec))
    with pytest.raises(InputError) as caught:
        together(alike.replace(QKV[1], Choice(2, 16)), whole(spec), "a runtime")
    assert str(caught.value) == (
        f"a runtime computes q_proj, k_proj, v_proj of {LAYER}.self_attn together and takes one choice for them, "
        "got int8g16, int2g16, int8g16; plan for a runtime"
    )


def test_tied_units_may_be_what_all_of_them_may_be() -> None:
    spec = spec_of_model(tiny_model(), "tiny")
    space = make_space(spec, (2, 4, 8), 16, grid="int")
    fewer = SearchSpace.of(space.by_unit | {QKV[2]: (Choice(4, 16), Choice(8, 32))})
    found = tied_space(fewer, whole(spec))
    assert found[f"{LAYER}.self_attn.qkv"] == (Choice(4, 16),)
    assert [unit for unit, _ in found] == [unit.name for unit in whole(spec).units]
    none = SearchSpace.of(space.by_unit | {QKV[2]: (Choice(8, 32),)})
    with pytest.raises(InputError, match="tied units need a choice that all of them have, .*v_proj have none"):
        tied_space(none, whole(spec))


def test_tied_units_stay_coupled_to_what_reads_their_channels() -> None:
    spec = spec_of_model(tiny_model(), "tiny")
    space = make_space(spec, (2, 4), 16, (0.5, 0.0), grid="int")
    assert space.coupled[0] == (GATE, UP, DOWN)
    found = tied_space(space, whole(spec))
    assert found.coupled[0] == (f"{LAYER}.mlp.gate_up", DOWN)
    blocks = dict(found.blocks)
    assert len(blocks[found.coupled[0]]) == 2 * 2 + 2 * 2 + 1
    for number in (0, 3, 8):
        subnet = found.at([number] * len(found.blocks))
        assert subnet in found and apart(subnet, whole(spec), spec) in space


def test_what_tied_units_lose_adds_up() -> None:
    spec = spec_of_model(tiny_model(), "tiny")
    space = make_space(spec, (2, 4), 16, grid="int")
    losses = {u: {str(c): (n + 1) / c.bits for c in choices} for n, (u, choices) in enumerate(space)}
    losses[QKV[1]]["int3g16"] = 0.5  # the others have none
    table = SensitivityTable("all", losses)
    found = table.tied(whole(spec))
    found.check(tied_space(space, whole(spec)))
    qkv = found.units[f"{LAYER}.self_attn.qkv"]
    assert qkv == {c: pytest.approx(sum(losses[unit][c] for unit in QKV)) for c in ("int2g16", "int4g16")}
    alike = space.uniform(spec, 2)
    assert found.predict(together(alike, whole(spec), "it")) == pytest.approx(table.predict(alike))
    del losses[QKV[1]]
    with pytest.raises(InputError, match=r"none for model.layers.0.self_attn.qkv at int2g16"):
        SensitivityTable("all", losses).tied(whole(spec)).check(tied_space(space, whole(spec)))


def test_units_of_before_stay_as_they_were() -> None:
    old = whole(spec_of_model(tiny_model(), "tiny"))
    space = make_space(old, (2, 4), 16, (0.5, 0.0), grid="int")
    subnet = space.uniform(old, 2)
    assert tied(old, siblings(old)) == old
    assert together(subnet, old, "it") == apart(subnet, old, old) == subnet
    assert tied_space(space, old) == space
    table = {unit: dict.fromkeys(choices, 1.0) for unit, choices in space}
    assert tied_table(table, old) == table


def test_a_training_draws_siblings_alike() -> None:
    made = make()
    made.supernet.adapt(TrainedScales, (2, 3, 4), seed=0)
    space = trained_space(made.supernet)
    assert [unit for unit, _ in space] == [unit.name for unit in whole(made.spec).units]
    assert space[f"{LAYER}.self_attn.qkv"] == (Choice(2, 16), Choice(3, 16), Choice(4, 16))
    made.supernet.matrices[QKV[1]].drop([Choice(3, 16)])
    assert trained_space(made.supernet)[f"{LAYER}.self_attn.qkv"] == (Choice(2, 16), Choice(4, 16))


def test_a_supernet_computes_siblings_that_differ() -> None:
    made = make()
    subnet = made.space.uniform(made.spec, 8)
    mixed = subnet.replace(QKV[0], Choice(2, 16)).replace(UP, Choice(3, 16))
    made.supernet.activate(mixed)
    assert [made.supernet.matrices[unit].choice.bits for unit in (*QKV, GATE, UP)] == [2, 8, 8, 8, 3]
    assert Subnet.from_json(mixed.to_json()) == mixed
