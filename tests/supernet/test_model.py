"""What a model is made of, for every architecture."""

from __future__ import annotations

import pytest
import torch

from supernet.model import check_head, hidden_states, logits_of, spec_of, spec_of_model
from supernet.spec import ModelSpec
from tests.tiny import FAMILIES, MIXTURES, tiny_config, tiny_model

ATTENTION = ["q_proj", "k_proj", "v_proj"]
LLAMA_LIKE = [*ATTENTION, "o", "gate_proj", "up_proj", "down"]
EXPERTS = [*ATTENTION, "o", "expert_gate", "expert_up", "expert_down"]
ROLES = {
    "phi": [*ATTENTION, "dense", "fc1", "fc2"],
    "phi3": ["o", "qkv_proj", "gate_up_proj", "down"],
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS,
}


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_the_config_alone_tells_the_whole_spec(family: str) -> None:
    model = tiny_model(family)
    spec = spec_of_model(model, family)
    assert spec_of(tiny_config(family), family) == spec
    assert ModelSpec.from_json(spec.to_json()) == spec
    counted = spec.float_parameters + sum(unit.weights for unit in spec.units)
    assert counted == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_every_linear_is_a_unit(family: str) -> None:
    spec = spec_of_model(tiny_model(family), family)
    tables = ["embedding"] if spec.tied else ["embedding", "head"]
    assert [unit.role for unit in spec.units if unit.is_table] == tables
    for layer in range(2):
        roles = [unit.role for unit in spec.units if unit.layer == layer]
        assert sorted(roles) == sorted(ROLES.get(family, LLAMA_LIKE))
    plain = [unit for unit in spec.units if unit.chosen is None]
    assert all(unit.linears[0].name == unit.name and len(unit.linears) == 1 for unit in plain)
    for unit in set(spec.units) - set(plain):
        parent, _, tail = unit.name.rpartition(".")
        assert [linear.name for linear in unit.linears] == [f"{parent}.{number}.{tail}" for number in range(4)]
        assert unit.chosen == 2 and unit.share_computed == 0.5
    assert spec.num_kv_heads == (4 if family == "phi" else 2)
    assert spec.head_dim == 16
    assert any(lin.bias for unit in spec.units for lin in unit.linears) == (family in ("qwen2", "phi"))


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_logits_are_those_of_the_model(family: str) -> None:
    model = tiny_model(family)
    check_head(model)
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(logits_of(model, hidden_states(model, ids)), model(ids).logits)
