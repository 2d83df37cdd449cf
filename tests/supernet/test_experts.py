"""Experts are linears like others: the same numbers, and units that tell how many of them are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from records.errors import InputError
from supernet.build import extract
from supernet.checkpoint import open_supernet
from supernet.choices import make_space
from supernet.create import create
from supernet.experts import Experts, unstacked
from supernet.loading import load_model
from supernet.model import removed_after, spec_of_model
from supernet.peft import to_peft
from supernet.progress import Progress, silent
from supernet.quantize import quantize
from supernet.quantizers import GPTQ, RTN
from supernet.recipe import Recipe
from supernet.shelf import OnDisk, Shelf
from supernet.spec import LinearSpec, ModelSpec, UnitSpec
from supernet.stages.amounts import CALIBRATION
from supernet.ties import tied, whole_experts
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


def uneven(family: str) -> Any:
    """A tiny mixture whose router prefers some of eight experts."""
    model = tiny_model(family, num_local_experts=8)
    for name, weight in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            weight.mul_(torch.logspace(3, -2, 8, 2)[:, None])
    return model


def routing(model: Any, text: torch.Tensor) -> list[torch.Tensor]:
    """Of each layer, which experts each token chose: `(tokens, experts)`, bool."""
    found = []

    def note(experts: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found.append(torch.nn.functional.one_hot(args[1], 8).sum(1).bool())

    with removed_after([one.register_forward_pre_hook(note) for one in model.modules() if isinstance(one, Experts)]):
        model(text)
    return found


@pytest.mark.parametrize("fisher", [True, False])
@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_read_as_the_text_chose_them(family: str, fisher: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts are those of a plain pass. Of batches of t tokens from anywhere in the text, 4000 of them, the mean of
    distinct experts is what is expected, within 4 standard errors; of all pairs of tokens, just that."""
    monkeypatch.setattr("supernet.hessians.compute_dtype", lambda device: torch.float32)
    model, text = uneven(family), windows(24, 32)
    spec, tokens = spec_of_model(model, "tiny"), dict[str, int]()
    space = make_space(spec, (4,), 16, grid="sym")
    quantize(model, spec, space, GPTQ(clip=False, fisher=fisher), text, chosen_by=tokens.__setitem__)
    units = [unit for unit in spec.counted(tokens).units if unit.chosen is not None]
    for layer, chose in enumerate(routing(model, text)):
        here = [unit for unit in units if unit.layer == layer]
        assert [unit.role for unit in here] == ["expert_gate", "expert_up", "expert_down"]
        assert {unit.chosen_by for unit in here} == {tuple(chose.sum(0).tolist())}
        unit, even = here[0], replace(here[0], chosen_by=())
        assert unit.tokens_counted == text.numel() and unit.experts_read(1) == pytest.approx(2, abs=1e-12)
        pairs = (chose[:, None] | chose[None]).sum(-1).double()
        assert unit.experts_read(2) == pytest.approx(pairs.mean().item(), abs=1e-12)
        drawn = torch.Generator().manual_seed(layer)
        for count in (4, 8, 32):
            picked = torch.randint(len(chose), (4000, count), generator=drawn)
            distinct = chose[picked].any(1).sum(1).double()
            error = distinct.std().item() / 4000**0.5
            assert unit.experts_read(count) == pytest.approx(distinct.mean().item(), abs=4 * error)
            assert even.experts_read(count) > distinct.mean() + 4 * error  # taken as even it is too many


def test_a_start_that_was_stopped_knows_who_chose_its_experts(tmp_path: Path) -> None:
    """Tokens of blocks that have their codes are not read again."""
    model, text = tiny_model("mixtral"), windows()
    spec = spec_of_model(model, "tiny")
    space, expected, found = make_space(spec, (8,), 16, grid="sym"), dict[str, int](), dict[str, int]()

    def made(chosen_by: dict[str, int], shelf: Shelf | None, progress: Progress = silent) -> None:
        quantize(model, spec, space, GPTQ(clip=False), text, progress, shelf=shelf, chosen_by=chosen_by.__setitem__)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "quantize" and done > 1:  # the last block of two; before it the head
            raise KeyboardInterrupt

    made(expected, None)
    with pytest.raises(KeyboardInterrupt):
        made({}, OnDisk(tmp_path), interrupt)
    assert [path.name for path in tmp_path.glob("chosen-by-*")] == ["chosen-by-1.json"]
    made(found, OnDisk(tmp_path))
    assert found == expected and len(found) == 2 * 4 * 3


def test_counts_are_kept_with_a_spec_and_checked() -> None:
    linears = tuple(LinearSpec(f"experts.{number}.up_proj", 16, 32) for number in range(4))
    unit = UnitSpec("experts.up_proj", "expert_up", 0, linears, 2, (3, 0, 4, 1))
    assert unit.tokens_counted == 4 and unit.shares == (0.75, 0.0, 1.0, 0.25)
    assert unit.share_read(1) == 0.5 and unit.experts_read(2) == 1 - 0.25**2 + 1 + 1 - 0.75**2
    for wrong, rule in (
        ((4, 4), "of each expert of experts.up_proj, got 2 numbers for 4 experts"),
        ((5, 0, 2, 1), "tokens that choose 2 experts each"),  # one token chose an expert twice
        ((3, -1, 4, 2), "tokens that choose 2 experts each"),
        ((3, 0, 4, 2), "tokens that choose 2 experts each"),
        ((0, 0, 0, 0), "tokens that choose 2 experts each"),
    ):
        with pytest.raises(InputError, match=rule):
            replace(unit, chosen_by=wrong)
    with pytest.raises(InputError, match="got 1 numbers for 0 experts"):
        UnitSpec("o", "o", 0, linears[:1], chosen_by=(1,))


@pytest.mark.parametrize("family", MIXTURES)
def test_a_spec_with_counts_is_the_same_from_json_and_tied(family: str) -> None:
    """In JSON of before there are none; nor in a spec that is read from a config."""
    spec = spec_of_model(tiny_model(family), family)
    assert not any(unit.chosen_by for unit in spec.units)
    here = [unit for unit in spec.units if unit.chosen is not None]
    tokens = {linear.name: 7 if ".experts.1." in linear.name else 5 for unit in here for linear in unit.linears}
    counted = spec.counted(tokens)
    assert {unit.chosen_by for unit in counted.units} == {(), (5, 7, 5, 5)}
    assert ModelSpec.from_json(json.loads(json.dumps(counted.to_json()))) == counted
    before = spec.to_json()
    for one in before["units"]:
        del one["chosen_by"]
    assert ModelSpec.from_json(before) == spec
    assert counted.counted({}) == counted and spec.counted(dict.fromkeys(tokens, 0)) == spec
    together = [unit for unit in tied(counted, whole_experts(counted)).units if unit.chosen is not None]
    assert [unit.chosen_by for unit in together] == [(5, 7, 5, 5)] * 2


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
    assert open_supernet(files.path).spec == files.spec
    for layer in range(2):
        read = {unit.chosen_by for unit in files.spec.units if unit.chosen is not None and unit.layer == layer}
        assert [sum(counts) for counts in read] == [2 * 16 * CALIBRATION]  # one row: of all three matrices
    units = [unit for unit in files.spec.units if unit.role == "expert_gate"]
    assert [len(unit.linears) for unit in units] == [4, 4] and "unread" not in files.info
    supernet, subnet = files.load(), files.space.uniform(files.spec, 4)
    supernet.activate(subnet)
    plain = extract(supernet, subnet)
    assert torch.allclose(plain(windows()).logits, supernet.model(windows()).logits, atol=1e-4)
