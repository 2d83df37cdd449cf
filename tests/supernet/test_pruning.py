"""Pruned feed-forward blocks: what a choice keeps, what a subnet computes, and which channels come first."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from scipy.stats import spearmanr

from records.errors import InputError
from supernet.adapters import ADAPTERS, TrainedScales
from supernet.build import build, extract
from supernet.checkpoint import ORDER, SUPERNET
from supernet.choices import kept_channels, make_space
from supernet.create import create
from supernet.evaluate import Reference, evaluate
from supernet.grids.packing import first, pack, unpack
from supernet.loading import load_model
from supernet.model import spec_of_model
from supernet.prepared import as_prepared
from supernet.pruning import Pruning, channel_order, reorder
from supernet.quantize import quantize
from supernet.quantizers import RTN
from supernet.recipe import Recipe
from supernet.samplers import SAMPLERS
from supernet.sensitivity import fisher_parts, measure_sensitivities
from supernet.sensitivity_table import SensitivityTable
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec
from supernet.train import Trainer, TrainOptions
from tests.conftest import Bitfleet
from tests.supernet.conftest import Made, assert_measured
from tests.tiny import FAMILIES, TEXT, save_tiny, tiny_model, windows

PRUNE = (0.5, 0.0)
GATE, UP, DOWN = (f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up", "down"))


def make(family: str = "llama", bits: tuple[int, ...] = (2, 3, 4, 8)) -> Made:
    model = tiny_model(family)
    spec = spec_of_model(model, family)
    space = make_space(spec, bits, 16, PRUNE, grid="int")
    return Made(model, spec, space, build(model, spec, space, quantize(model, spec, space, RTN(), windows())))


def drawn(space: SearchSpace, seed: int) -> Subnet:
    draw = random.Random(seed)
    found = {}
    for units, options in space.blocks:
        found |= dict(zip(units, draw.choice(options), strict=True))
    return Subnet(tuple((unit, found[unit]) for unit, _ in space))


def zeroed(model: Any, spec: ModelSpec, subnet: Subnet) -> Any:
    """Nothing reads the channels that are gone."""
    for *_, reader in spec.feed_forwards:
        kept = subnet[reader.name].kept
        if kept is not None:
            model.get_submodule(reader.linears[0].name).weight[:, kept:] = 0
    return model


@pytest.mark.parametrize("text", ["int4g64k1024", "int2g16k0", "int3g64"])
def test_a_choice_is_written_and_read(text: str) -> None:
    assert str(Choice.parse(text)) == text
    assert Choice.parse(text).whole == Choice.parse(text.partition("k")[0])


def test_choices_are_ordered_by_bits_then_channels() -> None:
    texts = ["int2g16k0", "int2g16k64", "int2g16", "int4g16k64", "int4g16"]
    choices = [Choice.parse(text) for text in texts]
    assert sorted(set(choices)) == choices
    with pytest.raises(ValueError, match="kept must be a multiple of the group size, got 24 and 16"):
        Choice(4, 16, kept=24)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_blocks_to_prune(family: str) -> None:
    spec = spec_of_model(tiny_model(family), family)
    assert [[unit.layer for unit in block] for block in spec.feed_forwards] in ([[0] * 2, [1] * 2], [[0] * 3, [1] * 3])
    space = make_space(spec, (2, 4), 16, PRUNE, grid="int")
    for block in spec.feed_forwards:
        for unit in block:
            assert list(map(str, space[unit.name])) == ["int2g16k0", "int2g16k64", "int2g16", "int4g16k64", "int4g16"]


def test_a_space_with_coupled_units_is_written_and_read() -> None:
    spec = spec_of_model(tiny_model(), "tiny")
    space = make_space(spec, (2, 4), 16, PRUNE, grid="int")
    assert SearchSpace.from_json(space.to_json()) == space
    assert space.whole == make_space(spec, (2, 4), 16, grid="int")
    assert "coupled" not in space.whole.to_json()
    half, whole = Choice(2, 16, kept=64), Choice(4, 16)
    subnet = space.uniform(spec, 4)
    assert subnet in space
    assert subnet.replace(DOWN, half) not in space
    assert subnet.replace(DOWN, half).replace(UP, space.pruned(UP, whole, 64)) not in space
    assert subnet.replace(DOWN, half).replace(UP, space.pruned(UP, whole, 64)).replace(GATE, half) in space
    assert space.pruned(DOWN, whole, 0) == Choice(2, 16, kept=0)


def test_what_one_of_coupled_units_loses_the_others_lose() -> None:
    spec = spec_of_model(tiny_model(), "tiny")
    space = make_space(spec, (2, 4), 16, PRUNE, grid="int")
    left = space.restrict(lambda unit, choice: unit != GATE or choice.kept != 64)
    assert {choice.kept for unit in (UP, DOWN) for choice in left[unit]} == {None, 0}
    assert left.restrict(lambda unit, choice: unit != GATE or choice.kept is None)[DOWN] == space.whole[DOWN]
    with pytest.raises(ValueError, match="coupled units keep the same numbers of channels"):
        SearchSpace.of(space.by_unit | {DOWN: (Choice(4, 16),)}, space.coupled)
    with pytest.raises(ValueError, match="is coupled to another"):
        SearchSpace.of(space.by_unit)
    with pytest.raises(ValueError, match="coupled units are two at least and belong together once"):
        SearchSpace.of(space.by_unit, (*space.coupled, (GATE, UP)))


def test_blocks_are_all_that_units_may_be_together() -> None:
    spec = spec_of_model(tiny_model(), "tiny")
    space = make_space(spec, (2, 4), 16, PRUNE, grid="int")
    together = dict(space.blocks)
    assert len(together[GATE, UP, DOWN]) == 2**3 + 2**3 + 1
    assert sum(len(units) for units in together) == len(spec.units)
    assert all(drawn(space, seed) in space for seed in range(20))


def test_mean_bits_count_what_is_gone_as_nothing() -> None:
    spec = spec_of_model(tiny_model(), "tiny")
    space = make_space(spec, (2, 4), 16, PRUNE, grid="int")
    subnet = space.uniform(spec, 4)
    for block in spec.feed_forwards:
        for unit in block:
            subnet = subnet.replace(unit.name, Choice(4, 16, kept=64))
    feed_forward = sum(unit.weights for block in spec.feed_forwards for unit in block)
    assert subnet.mean_bits(spec) == pytest.approx(4 * (1 - 0.5 * feed_forward / spec.linear_weights))


def test_channels_are_kept_in_multiples_that_products_like() -> None:
    (*_, down), *_ = spec_of_model(tiny_model(), "tiny").feed_forwards
    assert kept_channels(down, (0.9, 0.75, 0.5, 0.0), 16) == (0, 64)
    with pytest.raises(ValueError, match=r"keeps a multiple of 64 channels, got 0.3 of 128; use shares from 0.5, or 0"):
        kept_channels(down, (0.3,), 16)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_first_codes_of_packed_rows_are_the_first_codes(bits: int) -> None:
    codes = torch.randint(2**bits, (3, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for kept in (0, 8, 64, 128):
        assert torch.equal(unpack(first(pack(codes, bits), bits, 128, kept), bits, kept), codes[:, :kept])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_subnet_is_the_whole_model_without_those_channels(family: str) -> None:
    made = make(family)
    ids = windows(2, 12)
    for seed in range(3):
        subnet = drawn(made.space, seed)
        plain = Subnet(tuple((unit, choice.whole) for unit, choice in subnet))
        expected = zeroed(extract(made.supernet, plain), made.spec, subnet)(ids).logits
        made.supernet.activate(subnet)
        assert torch.allclose(made.supernet.model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.allclose(extract(made.supernet, subnet)(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_serve_pruned_choices_as_well(adapter: str) -> None:
    made = make()
    made.supernet.adapt(ADAPTERS[adapter], (2, 3, 4), seed=0)
    with torch.no_grad():
        for number, parameter in enumerate(p for m in made.supernet.matrices.values() for p in m.adapters.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.02)
    ids = windows(2, 12)
    for seed in range(3):
        subnet = drawn(made.space, seed)
        made.supernet.activate(subnet)
        ours = made.supernet.model(ids).logits
        assert torch.allclose(ours, extract(made.supernet, subnet)(ids).logits, rtol=1e-3, atol=2e-4)
        if ADAPTERS[adapter].deploys != "side":
            made.supernet.fold()
            assert torch.allclose(made.supernet.model(ids).logits, ours, rtol=1e-3, atol=2e-4)
            return


def test_pruned_choices_store_nothing(made: Made) -> None:
    pruned = make().supernet
    for name, matrix in made.supernet.matrices.items():
        assert pruned.matrices[name].state_dict().keys() == matrix.state_dict().keys()


def test_more_channels_than_there_are_are_refused() -> None:
    made = make()
    with pytest.raises(ValueError, match="kept must be below the block's 128 channels, got int4g16k128"):
        made.supernet.matrices[DOWN].select(Choice(4, 16, kept=128))
    with pytest.raises(ValueError, match="a choice must be one the supernet holds, got int4g16k64"):
        made.supernet.matrices["model.layers.0.self_attn.o_proj"].select(Choice(4, 16, kept=64))


@pytest.mark.parametrize("family", FAMILIES)
def test_reordering_channels_changes_nothing(family: str) -> None:
    model, ids = tiny_model(family), windows(2, 12)
    spec = spec_of_model(model, family)
    before = model(ids).logits
    order = channel_order(model, spec, windows(2, 16), seed=0)
    assert all(sorted(channels.tolist()) == list(range(128)) for channels in order.values())
    reorder(model, spec, order)
    assert torch.allclose(model(ids).logits, before, rtol=1e-3, atol=1e-4)
    assert any(channels.tolist() != list(range(128)) for channels in order.values())


def test_channels_that_nothing_needs_come_last() -> None:
    model = tiny_model()
    spec = spec_of_model(model, "tiny")
    useless = torch.arange(0, 128, 2)
    model.get_submodule(DOWN).weight[:, useless] = 0
    assert set(channel_order(model, spec, windows(2, 16), seed=0)[DOWN][64:].tolist()) == set(useless.tolist())


def test_what_is_pruned_opens_slowly_and_comes_back() -> None:
    spec = spec_of_model(tiny_model(), "tiny")
    space = make_space(spec, (2, 4), 16, PRUNE, grid="int")
    pruning, block = Pruning(), (GATE, UP, DOWN)
    assert [pruning.open(space, step, 100)[block] for step in (0, 19, 20, 59, 60)] == [(), (), (64,), (64,), (64, 0)]
    whole = space.uniform(spec, 4)
    drawn = [pruning.draw(whole, space, step, 100, seed=1) for step in range(100)]
    assert drawn == [pruning.draw(whole, space, step, 100, seed=1) for step in range(100)]
    assert all(subnet in space for subnet in drawn)
    assert set(drawn[:20]) == {whole}
    assert 0.4 < sum(subnet == whole for subnet in drawn) / 100 < 0.95
    assert {subnet[DOWN].kept for subnet in drawn[60:]} == {None, 64, 0}
    assert all(subnet[u].bits == 4 for subnet in drawn for u in block if subnet[u].kept != 0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_training_draws_pruned_subnets_whatever_the_sampler(name: str, tmp_path: Path) -> None:
    made = make()
    made.supernet.adapt(TrainedScales, (2, 3, 4), seed=0)
    teacher = "largest" if SAMPLERS[name].several else "full"
    options = TrainOptions(6, 1e-3, batch=2, teacher=teacher)
    trainer = Trainer(made.model, made.supernet, windows(), SAMPLERS[name](), options, Accelerator(), tmp_path / "t")
    trainer.pruning = Pruning(start=0, all_open=0, whole=0, most=1)
    assert all(choice.kept is None for _, choices in trainer.space for choice in choices)
    subnets = trainer.pruned(trainer.draw(5), 5)
    assert all(subnet in made.space for subnet in subnets)
    assert any(choice.kept is not None for subnet in subnets for _, choice in subnet)
    if teacher == "largest":
        assert all(choice.kept is None for _, choice in subnets[0])
        trainer.options = TrainOptions(6, 1e-3, batch=2)
        free = trainer.pruned(trainer.draw(5), 5)  # where all learn from the full model, the largest may lose some too
        assert any(choice.kept is not None for _, choice in free[0])
    assert all(loss > 0 for loss in trainer.run())


def test_removals_rank_as_single_evaluations_do() -> None:
    made = make()
    reorder(made.model, made.spec, channel_order(made.model, made.spec, windows(8, 32, seed=3), seed=0))
    weights = quantize(made.model, made.spec, made.space, RTN(), windows())
    made.supernet = build(made.model, made.spec, made.space, weights)
    text = windows(16, 32, seed=5)
    units = [unit for unit in made.spec.units if not unit.is_table]
    table, removals = fisher_parts(made.model, made.supernet, units, text, seed=0)
    best = made.space.uniform(made.spec, 8)
    swaps, estimated = [], []
    for block in made.space.coupled:
        for kept in (0, 64):
            subnet = best
            for unit in block:
                subnet = subnet.replace(unit, made.space.pruned(unit, best[unit], kept))
            swaps.append(subnet)
            estimated.append(removals[block[-1]][kept] + sum(table[unit][subnet[unit]] for unit in block))
    true = [quality.kl for quality in evaluate(made.supernet, swaps, Reference.of(made.model, text))]
    assert spearmanr(estimated, true).statistic > 0.7
    for unit in block:
        assert table[unit][Choice(2, 16, kept=0)] == 0
        assert table[unit][Choice(2, 16, kept=64)] <= 1.2 * table[unit][Choice(2, 16)]


def test_the_table_adds_up_to_the_measured_pruned_subnets() -> None:
    made = make()
    text = windows(4, 32)
    reference = Reference.of(made.model, text)
    table, measured = measure_sensitivities(made.model, made.supernet, text, reference, seed=0)
    SensitivityTable("full", {u: {str(c): v for c, v in row.items()} for u, row in table.items()}).check(made.space)
    pruned = [subnet for subnet in measured if any(choice.kept is not None for _, choice in subnet)]
    assert len(pruned) == 2
    for subnet in (*pruned, made.space.uniform(made.spec, 3)):
        total = sum(table[unit][choice] for unit, choice in subnet)
        assert total == pytest.approx(measured[subnet].kl, rel=1e-6) or total > measured[subnet].kl


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model")))


RECIPE = Recipe(
    bits=(2, 4, 8), group_size=16, steps=6, batch=2, window_tokens=16, quantizer="rtn", sampler="balanced",
    prune=(0.5, 0.0),
)  # fmt: skip


@pytest.mark.parametrize("stop", ["train", "sensitivities"])
def test_a_pruned_supernet_is_made_stopped_and_gone_on_with(stop: str, source: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 4)
    recipe = Recipe(**{**RECIPE.to_json(), "bits": RECIPE.bits, "prune": RECIPE.prune, "data": str(text)})

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith(stop) and done >= total / 2:
            raise KeyboardInterrupt

    whole = create(source, tmp_path / "whole", recipe)
    with pytest.raises(KeyboardInterrupt):
        create(source, tmp_path / "part", recipe, progress=interrupt)
    files = create(source, tmp_path / "part", RECIPE, resume=True)
    assert files.hashes == whole.hashes
    assert Recipe.from_json(files.info["recipe"]) == recipe
    SensitivityTable.load(files.path / "sensitivity.json").check(files.space, files.fingerprint)
    supernet = files.load()
    assert_measured(files)
    full = load_model(source).model
    as_prepared(full, files)
    weight, stored = full.get_submodule(DOWN).weight, supernet.matrices[DOWN].effective(RECIPE.choice(8))
    assert (weight - stored).abs().max() < 0.02 * weight.abs().max()
    half = files.folded(DOWN, replace(RECIPE.choice(4), kept=64))
    assert torch.equal(half.codes, files.folded(DOWN, RECIPE.choice(4)).codes[:, :64])
    assert half.scale.shape == half.zero.shape == (64, 4)


def test_without_pruning_the_folder_does_not_mention_it(source: str, tmp_path: Path) -> None:
    plain = Recipe(**{**RECIPE.to_json(), "bits": RECIPE.bits, "prune": ()})
    files = create(source, tmp_path / "plain", plain)
    text = (files.path / SUPERNET).read_text()
    assert not any(f'"{word}"' in text for word in ("prune", "coupled"))
    assert not (files.path / ORDER).exists()
    assert Recipe.from_json(json.loads(text)["info"]["recipe"]) == plain


@pytest.mark.parametrize("prune", [(1.0,), (-0.5,), (0.0, 0.5), (0.5, 0.5)])
def test_shares_out_of_range_are_refused(prune: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="prune must be falling shares from below 1 to 0"):
        Recipe(prune=prune)


def test_shares_that_are_no_numbers_are_one_clear_line(bitfleet: Bitfleet) -> None:
    found = bitfleet("train", "nowhere", "--prune", "half")
    assert found.code == 2
    assert found.error == "--prune must be numbers with commas such as 0.75,0.5,0, got 'half'"


def test_peft_keeps_every_channel() -> None:
    from supernet.peft import to_peft

    made = make()
    with pytest.raises(ValueError, match="a PEFT model keeps every channel, this subnet is pruned"):
        to_peft(made.supernet, next(s for s in (drawn(made.space, n) for n in range(9)) if s[DOWN].kept is not None))


def test_a_space_that_lacks_a_pruned_choice_says_so() -> None:
    up, down = ((Choice(bits, 16), Choice(bits, 16, kept=64)) for bits in (4, 8))
    space = SearchSpace.of({"up": up, "down": down}, (("up", "down"),))
    assert space.pruned("up", up[0], 64) == up[1]
    with pytest.raises(InputError, match="down must have int4g16 with 64 channels as an option"):
        space.pruned("down", up[0], 64)
