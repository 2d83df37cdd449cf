"""AWQ's channel scales: the model computes the same, and large inputs get a finer grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from supernet.awq import channel_scales, mean_inputs, norm_readers, rescale, rescale_checked
from supernet.build import build
from supernet.checkpoint import ORDER, SCALING
from supernet.choices import make_space
from supernet.create import create
from supernet.evaluate import Reference, evaluate
from supernet.files import read_tensors
from supernet.loading import load_model
from supernet.model import spec_of_model
from supernet.quantize import quantize
from supernet.quantizers import RTN
from supernet.recipe import Recipe
from tests.tiny import FAMILIES, TEXT, save_tiny, tiny_model, windows

NORM, QKV = "model.layers.0.input_layernorm", [f"model.layers.0.self_attn.{p}_proj" for p in "qkv"]
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
GATED = [family for family in FAMILIES if family != "phi"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_computes_the_same(family: str) -> None:
    model, ids = tiny_model(family), windows(2, 12)
    spec = spec_of_model(model, family)
    before = model(ids).logits
    kept = {name: value.clone() for name, value in model.named_parameters()}
    scales = channel_scales(model, spec, windows(4, 16), 1.0)
    rescale(model, scales)
    assert torch.allclose(model(ids).logits, before, rtol=1e-3, atol=1e-4)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, kept[name])}
    assert all(f"{linear.name}.weight" in changed for unit in spec.units if reads_a_norm(unit.role)
               for linear in unit.linears)  # fmt: skip


def reads_a_norm(role: str) -> bool:
    return role in ("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "fc1")


@pytest.mark.parametrize("family", GATED)
def test_a_gated_block_is_scaled_between_up_and_down(family: str) -> None:
    model = tiny_model(family)
    spec = spec_of_model(model, family)
    scales = channel_scales(model, spec, windows(4, 16))
    up = "model.layers.0.mlp.gate_up_proj" if family == "phi3" else UP
    made, read = scales[f"{up}|makes"], scales[f"{DOWN}|reads"]
    assert torch.equal(made[-len(read) :], read)
    assert torch.all(made[: -len(read)] == 1)  # the gate passes an activation


def test_scales_are_the_means_to_a_power() -> None:
    model = tiny_model()
    spec = spec_of_model(model, "tiny")
    mean = mean_inputs(model, [QKV[0]], windows(4, 16), lambda *_: None)[QKV[0]]
    found = channel_scales(model, spec, windows(4, 16), 0.5)
    expected = mean.sqrt() / mean.sqrt().log().mean().exp()
    for name in (f"{NORM}|makes", *(f"{linear}|reads" for linear in QKV)):
        assert torch.allclose(found[name], expected.clamp(1 / 8, 8))


def test_a_channel_that_never_speaks_is_stretched_by_the_limit_at_most() -> None:
    model = tiny_model()
    model.get_submodule(NORM).weight[3] = 0.0
    found = channel_scales(model, spec_of_model(model, "tiny"), windows(4, 16))
    assert found[f"{NORM}|makes"][3] == pytest.approx(1 / 8)
    rescale(model, found)
    assert all(value.isfinite().all() for value in model.parameters())


def test_each_norm_is_read_by_the_linears_after_it() -> None:
    model = tiny_model("phi")  # attention and feed-forward block read one norm
    layer = "model.layers.1"
    found = norm_readers(model, spec_of_model(model, "phi"), windows(1, 8))
    assert found[f"{layer}.input_layernorm"] == [*(f"{layer}.self_attn.{p}_proj" for p in "qkv"), f"{layer}.mlp.fc1"]


def test_a_norm_that_more_than_linears_read_is_refused() -> None:
    model = tiny_model()
    layer = model.model.layers[0]
    spec = spec_of_model(model, "tiny")
    scales = channel_scales(model, spec, windows(4, 16))
    layer.mlp.register_forward_hook(lambda module, args, output: output + args[0])
    with pytest.raises(ValueError, match="awq needs norms that linears alone read, LlamaForCausalLM has others"):
        rescale_checked(model, scales, windows(1, 16))


def test_the_check_takes_a_few_tokens_however_many_windows_there_are() -> None:
    model, seen = tiny_model(), []
    scales = channel_scales(model, spec_of_model(model, "tiny"), windows(4, 16))
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(args[0].numel()))
    rescale_checked(model, scales, windows(64, 32))
    assert seen == [16, 16]


def uneven_model() -> Any:
    """As in language models, some channels of each norm are twenty times the others."""
    model = tiny_model()
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight[::16] = 20.0
    return model


def test_large_inputs_lose_less() -> None:
    found = []
    for power in (0.0, 0.5):
        model = uneven_model()
        spec = spec_of_model(model, "tiny")
        reference = Reference.of(model, windows(4, 32, seed=1))
        if power:
            rescale(model, channel_scales(model, spec, windows(4, 32), power))
        space = make_space(spec, (4,), 16, grid="int")
        supernet = build(model, spec, space, quantize(model, spec, space, RTN(), windows()))
        found.append(evaluate(supernet, [space.uniform(spec, 4)], reference)[0].kl)
    plain, scaled = found
    assert scaled < 0.7 * plain


@pytest.mark.parametrize("power", [0.5, 0.0])
def test_a_supernet_is_made_stopped_and_gone_on_with(power: float, tmp_path: Path) -> None:
    source, text = str(save_tiny(tmp_path / "model")), tmp_path / "text.txt"
    if power:  # where scales win nothing they are taken back
        uneven_model().save_pretrained(source)
    text.write_text(TEXT * 4)
    recipe = Recipe(
        bits=(2, 8), group_size=16, awq=power, adapter="rounding", steps=4, window_tokens=16, data=str(text)
    )

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("train") and done >= total / 2:
            raise KeyboardInterrupt

    whole = create(source, tmp_path / "whole", recipe)
    with pytest.raises(KeyboardInterrupt):
        create(source, tmp_path / "part", recipe, progress=interrupt)
    files = create(source, tmp_path / "part", recipe, resume=True)
    assert files.hashes == whole.hashes
    assert (files.path / SCALING).exists() == (power > 0)
    full = load_model(source).model
    if power:
        rescale(full, read_tensors(files.path / SCALING)[0])
    supernet = files.load()
    for name, value in supernet.floats.items():
        assert torch.equal(value, full.get_parameter(name))
    for linear in (*QKV, UP, DOWN):
        weight, stored = full.get_submodule(linear).weight, supernet.matrices[linear].effective(recipe.choice(8))
        assert (weight - stored).abs().max() < 0.02 * weight.abs().max()


def test_a_run_that_goes_on_scales_and_reorders_the_same(tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "quantize":
            raise KeyboardInterrupt

    source, text = str(save_tiny(tmp_path / "model")), tmp_path / "text.txt"
    uneven_model().save_pretrained(source)
    text.write_text(TEXT * 4)
    recipe = Recipe(bits=(2, 8), group_size=16, prune=(0.5,), steps=1, window_tokens=16, data=str(text))
    with pytest.raises(KeyboardInterrupt):
        create(source, tmp_path / "out", recipe, progress=interrupt)
    assert not (tmp_path / "out" / "supernet.json").exists()
    files = create(source, tmp_path / "out", recipe, resume=True)
    assert {ORDER, SCALING} <= files.hashes.keys()
    assert files.hashes == create(source, tmp_path / "whole", recipe).hashes


@pytest.mark.parametrize("power", [-0.1, 1.5])
def test_other_powers_are_refused(power: float) -> None:
    with pytest.raises(ValueError, match=f"awq must be from 0, which is off, to 1, got {power}"):
        Recipe(awq=power)


def test_folders_from_before_had_none() -> None:
    old = {name: value for name, value in Recipe().to_json().items() if name != "awq"}
    assert Recipe.from_json(old).awq == 0.0
