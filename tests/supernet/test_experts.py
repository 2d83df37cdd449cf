"""Experts are linears like others: the same numbers, and units that tell how many of them are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from records.errors import InputError
from supernet.build import extract
from supernet.choices import make_space
from supernet.create import create
from supernet.experts import Experts, unstacked
from supernet.loading import load_model
from supernet.model import spec_of_model
from supernet.peft import to_peft
from supernet.quantize import quantize
from supernet.quantizers import GPTQ, RTN
from supernet.recipe import Recipe
from supernet.spec import LinearSpec, UnitSpec
from tests.supernet.conftest import assert_measured, make
from tests.tiny import MIXTURES, save_tiny, tiny_model, windows


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_that_are_linears_compute_the_same_and_copy_no_weight(tmp_path: Path, family: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path, family), dtype=torch.float32)
    model.eval().requires_grad_(False)
    theirs = model(windows()).logits
    stack = model.model.layers[0].mlp.experts.down_proj
    assert torch.equal(unstacked(model)(windows()).logits, theirs)
    last = model.get_submodule("model.layers.0.mlp.experts.3.down_proj").weight
    assert last.data_ptr() == stack[3].data_ptr()
    assert torch.equal(load_model(str(tmp_path)).model(windows()).logits, theirs)


def test_with_gradients_every_expert_takes_part(tmp_path: Path) -> None:
    """Processes that train together find gradients of the same parameters."""
    model = make("mixtral").model
    experts = next(module for module in model.modules() if isinstance(module, Experts))
    hidden = torch.randn(3, 64)
    chosen, shares = torch.tensor([[0, 2]] * 3), torch.full((3, 2), 0.5)
    experts.requires_grad_(True)
    experts(hidden, chosen, shares).sum().backward()
    silent = [not parameter.grad.any() for parameter in experts[1].parameters()]  # type: ignore[union-attr]
    assert silent == [True] * 3
    assert all(parameter.grad.any() for parameter in experts[2].parameters())  # type: ignore[union-attr]


def test_how_many_experts_are_read() -> None:
    """One token reads those it chose; many read all; two of eight, by two tokens, 8 (1 - (3/4)^2) of them."""
    linears = tuple(LinearSpec(f"experts.{number}.up_proj", 16, 32) for number in range(8))
    unit = UnitSpec("experts.up_proj", "expert_up", 0, linears, 2)
    assert [unit.experts_read(tokens) for tokens in (1, 2)] == [2, 3.5]
    assert unit.share_read(1000) == pytest.approx(1)
    torch.manual_seed(0)
    drawn = [len(set(torch.cat([torch.randperm(8)[:2] for _ in range(4)]).tolist())) for _ in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(unit.experts_read(4), rel=0.02)


def test_an_expert_that_no_token_chose_is_rounded_to_nearest() -> None:
    """GPTQ has nothing to go by there. Positions of a text of one token are alike, and choose two of four."""
    model, text = tiny_model("mixtral"), torch.full((8, 32), 7)
    spec = spec_of_model(model, "tiny")
    space, unread = make_space(spec, (2, 4), 16, grid="sym"), list[str]()
    found = quantize(model, spec, space, GPTQ(), text, unread=unread.append)
    assert len(unread) == 2 * 2 * 3 and all(".experts." in name for name in unread)
    nearest = quantize(model, spec, space, RTN(), text)
    same = {
        name
        for name, weights in found.items()
        if all(torch.equal(weight.dequantize(), nearest[name][c].dequantize()) for c, weight in weights.items())
    }
    assert same == {*unread, "model.embed_tokens"}


def test_experts_have_no_place_in_a_peft_model() -> None:
    made = make("mixtral", bits=(4, 8))
    with pytest.raises(InputError, match="no LoRA for experts"):
        to_peft(made.supernet, made.space.uniform(made.spec, 4))


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize(("quantizer", "adapter"), [("gptq", "scales"), ("learned", "lora")])
def test_a_mixture_trains_to_a_supernet(tmp_path: Path, family: str, quantizer: str, adapter: str) -> None:
    recipe = Recipe(
        bits=(2, 4, 8), group_size=16, quantizer=quantizer, adapter=adapter, steps=4, batch=2, window_tokens=16,
        block_steps=8,
    )  # fmt: skip
    source = str(save_tiny(tmp_path / "model", family))
    files = create(source, tmp_path / "supernet", recipe)
    assert_measured(files)
    units = [unit for unit in files.spec.units if unit.role == "expert_gate"]
    assert [len(unit.linears) for unit in units] == [4, 4] and "unread" not in files.info
    supernet, subnet = files.load(), files.space.uniform(files.spec, 4)
    supernet.activate(subnet)
    plain = extract(supernet, subnet)
    assert torch.allclose(plain(windows()).logits, supernet.model(windows()).logits, atol=1e-4)
