"""Quality against its definition, and sensitivities against single-unit evaluations."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from scipy.stats import spearmanr
from torch import Tensor

from records.errors import InputError
from supernet.adapters import TrainedScales
from supernet.build import extract
from supernet.evaluate import Quality, Reference, evaluate, evaluate_said, evaluate_texts
from supernet.files import write_tensors
from supernet.quantizers import GPTQ
from supernet.reference import narrowest, read_references, write_references
from supernet.sensitivity import fisher, measure_sensitivities
from tests.supernet.conftest import Made, make
from tests.tiny import FAMILIES, windows


@pytest.mark.parametrize("family", FAMILIES)
def test_quality_is_its_definition(family: str) -> None:
    made = make(family)
    ids = windows(3, 16)
    subnet = made.space.uniform(made.spec, 3)
    (quality,) = evaluate(made.supernet, [subnet], Reference.of(made.model, ids))
    full = made.model(ids).logits.log_softmax(-1)
    ours = extract(made.supernet, subnet)(ids).logits.log_softmax(-1)
    kl = (full.exp() * (full - ours)).sum(-1)[:, :-1].mean().item()
    nll = -ours[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).mean().item()
    assert quality.kl == pytest.approx(kl, rel=1e-3)
    assert quality.perplexity == pytest.approx(math.exp(nll), rel=1e-3)
    same = (full.argmax(-1) == ours.argmax(-1))[:, :-1].float()
    assert quality.top1 == pytest.approx(same.mean().item(), abs=0.03)
    assert (quality.tokens, quality.windows) == (45, 3)
    full_nll = -full[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).mean().item()
    assert quality.full_perplexity == pytest.approx(math.exp(full_nll), rel=1e-3)
    assert Quality.from_json(quality.to_json()) == quality


def test_a_beginning_is_read_and_not_measured(made: Made) -> None:
    ids, subnet = windows(3, 16), made.space.uniform(made.spec, 3)
    (quality,) = evaluate(made.supernet, [subnet], Reference.of(made.model, ids, first=2))
    full = made.model(ids).logits.log_softmax(-1)
    ours = extract(made.supernet, subnet)(ids).logits.log_softmax(-1)
    kl = (full.exp() * (full - ours)).sum(-1)[:, 2:-1]
    assert quality.kl == pytest.approx(kl.mean().item(), rel=1e-3)
    nll = -ours[:, 2:-1].gather(-1, ids[:, 3:].unsqueeze(-1)).mean().item()
    assert quality.perplexity == pytest.approx(math.exp(nll), rel=1e-3)
    assert quality.tokens == 3 * 13
    by_window = kl.mean(-1).double().numpy()
    low, high = stats.t.interval(0.95, 2, by_window.mean(), stats.sem(by_window))
    assert quality.kl_interval == pytest.approx((high - low) / 2, rel=1e-3)
    assert evaluate(made.supernet, [subnet], Reference.of(made.model, ids[:1]))[0].kl_interval is None


def test_several_texts_are_measured_as_each_alone(made: Made) -> None:
    subnets = [made.space.uniform(made.spec, bits) for bits in (2, 4)]
    texts = {
        name: Reference.of(made.model, windows(count, 16, seed), first=1, text=name)
        for name, count, seed in (("a", 2, 1), ("b", 3, 2))
    }
    together = evaluate_texts(made.supernet, subnets, texts)
    for name, reference in texts.items():
        for index, quality in enumerate(evaluate(made.supernet, subnets, reference)):
            alone, found = quality.to_json(), together[index][name].to_json()
            spread, alone_spread = found.pop("statistics"), alone.pop("statistics")
            assert found == pytest.approx(alone, rel=1e-4)
            for field in ("kl_error", "p_rms", "ratio"):
                assert spread[field] == pytest.approx(alone_spread[field], rel=1e-4)


def test_what_anybody_says_is_measured_as_a_subnet_is(made: Made) -> None:
    """Logits of whole windows, a few windows at a time; others than of the model's tokens are refused."""
    subnet, reference = made.space.uniform(made.spec, 3), Reference.of(made.model, windows(5, 16), first=1)
    model, asked = extract(made.supernet, subnet), list[int]()

    def says(ids: Tensor) -> Tensor:
        asked.append(len(ids))
        return model(ids).logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("supernet.evaluate.SAID_BYTES", 2 * 4 * 16 * len(reference.head))
        found = evaluate_said(says, reference)
    (wanted,) = evaluate(made.supernet, [subnet], reference)
    assert asked == [2, 2, 1]
    assert found.kl == pytest.approx(wanted.kl, rel=1e-3) and found.tokens == wanted.tokens == 5 * 14
    assert found.statistics is not None and wanted.statistics is not None
    assert found.statistics.p_rms == pytest.approx(wanted.statistics.p_rms, rel=1e-3)
    with pytest.raises(InputError, match=f"of the {len(reference.head)} tokens of the full model, got 7"):
        evaluate_said(lambda ids: torch.zeros(*ids.shape, 7), reference)


def test_a_window_without_a_successor_is_refused(made: Made) -> None:
    reference = Reference.of(made.model, windows(2, 3), first=2)
    with pytest.raises(InputError, match="2 tokens after the 2 of its beginning, got 3"):
        evaluate(made.supernet, [made.space.uniform(made.spec, 3)], reference)


@pytest.mark.parametrize("family", ["llama", "phi", "gemma2"])
def test_references_come_back_from_their_file(family: str, tmp_path: Path) -> None:
    """A tied head, a head with a bias, a soft cap; kept in the type of the model's weights."""
    model = make(family).model.to(torch.bfloat16).float()
    model.config.final_logit_softcapping = 5.0 if family == "gemma2" else None
    texts = {
        name: Reference.of(model, windows(2, 16, seed), first=1, text=f"text {seed}")
        for seed, name in enumerate(("held-out", "b | c"))
    }
    write_references(tmp_path / "reference.safetensors", texts)
    found = read_references(tmp_path / "reference.safetensors")
    assert list(found) == list(texts)
    for name, reference in texts.items():
        again = found[name]
        assert again.head.dtype == torch.bfloat16
        assert again.to_json() == reference.to_json()
        assert (again.softcap, again.text) == (reference.softcap, reference.text)
        assert torch.equal(again.log_probs(1, slice(1, 9)), reference.log_probs(1, slice(1, 9)))
        full = model(reference.windows).logits.log_softmax(-1)[1, 1:9]
        assert torch.allclose(again.log_probs(1, slice(1, 9)), full, atol=1e-4)
    held = model.get_output_embeddings().weight.numel() * 2
    assert (tmp_path / "reference.safetensors").stat().st_size < held + 2 * (2 * 16 * (64 * 4 + 8)) + 4096


def test_a_file_of_something_else_is_no_reference(tmp_path: Path) -> None:
    write_tensors(tmp_path / "reference.safetensors", {"head": torch.ones(2, 2)}, {"softcap": None, "texts": {"a": 3}})
    with pytest.raises(InputError, match=r"reference.safetensors is damaged; copy it again"):
        read_references(tmp_path / "reference.safetensors")


def test_a_head_is_kept_as_narrow_as_is_exact() -> None:
    weight = torch.tensor([[1.0, 0.5], [3.0, -2.0]])
    assert narrowest(weight).dtype == torch.bfloat16
    assert narrowest(weight + 2**-9).dtype == torch.float16
    assert narrowest(weight + 2**-20).dtype == torch.float32
    assert narrowest(weight.half() + 2**-9).dtype == torch.float16


def test_a_model_loses_nothing_to_itself() -> None:
    made = make()
    best = made.space.uniform(made.spec, 8)
    reference = Reference.of(extract(made.supernet, best), windows(2, 16))
    (quality,) = evaluate(made.supernet, [best], reference)
    assert quality.kl == pytest.approx(0, abs=1e-5)
    assert quality.top1 == 1


def test_bfloat16_is_near_float32() -> None:
    made = make()
    reference = Reference.of(made.model, windows(4, 32))
    subnets = [made.space.uniform(made.spec, bits) for bits in (2, 3)]
    exact = evaluate(made.supernet, subnets, reference)
    for ours, theirs in zip(evaluate(made.supernet, subnets, reference, dtype=torch.bfloat16), exact, strict=True):
        assert ours.kl == pytest.approx(theirs.kl, rel=0.05, abs=0.01)


@pytest.mark.parametrize("batch", [1, 40, 2048])
def test_the_batch_changes_nothing(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make()
    reference = Reference.of(made.model, windows(3, 16))
    subnets = [made.space.uniform(made.spec, bits) for bits in (2, 3)]
    whole = evaluate(made.supernet, subnets, reference)
    monkeypatch.setattr("supernet.evaluate.BATCH_TOKENS", batch)
    for ours, theirs in zip(evaluate(made.supernet, subnets, reference), whole, strict=True):
        assert ours.kl == pytest.approx(theirs.kl, rel=1e-4)


def test_subnets_are_judged_alike_alone_and_together(made: Made) -> None:
    reference = Reference.of(made.model, windows(2, 16))
    subnets = [made.space.uniform(made.spec, bits) for bits in (2, 4, 8)]
    together = evaluate(made.supernet, subnets, reference)
    alone = [evaluate(made.supernet, [subnet], reference)[0] for subnet in subnets]
    assert [q.kl for q in together] == pytest.approx([q.kl for q in alone], rel=1e-5)
    assert [q.kl for q in together] == sorted((q.kl for q in together), reverse=True)


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi"])
def test_sensitivities_rank_units_as_single_evaluations_do(family: str) -> None:
    made = make(family, quantizer=GPTQ())
    units = [unit for unit in made.spec.units if not unit.is_table]
    text = windows(16, 32, seed=5)
    table = fisher(made.model, made.supernet, units, text, seed=0)
    best = made.space.uniform(made.spec, 8)
    swaps = [(unit.name, choice) for unit in units for choice in made.space[unit.name] if choice.bits < 8]
    true = evaluate(made.supernet, [best.replace(*swap) for swap in swaps], Reference.of(made.model, text))
    estimated = [table[name][choice] for name, choice in swaps]
    assert spearmanr(estimated, [quality.kl for quality in true]).statistic > 0.9


def test_a_unit_that_changes_nothing_costs_nothing() -> None:
    made = make()
    name = "model.layers.1.mlp.down_proj"
    exact = made.supernet.matrices[name].effective(made.space[name][-1])
    made.model.get_submodule(name).weight.copy_(exact)
    unit = made.spec.unit(name)
    table = fisher(made.model, made.supernet, [unit], windows(2, 16), seed=0)
    assert table[name][made.space[name][-1]] == pytest.approx(0, abs=1e-9)
    assert table[name][made.space[name][0]] > 1e-4


def test_the_table_adds_up_to_the_measured_uniform_subnets() -> None:
    made = make()
    made.supernet.adapt(TrainedScales, (2, 3, 4), seed=0)
    text = windows(4, 32)
    reference = Reference.of(made.model, text)
    table, measured = measure_sensitivities(made.model, made.supernet, text, reference, seed=0)
    assert list(table) == [unit.name for unit in made.spec.units]
    for bits in (2, 3, 4, 8):
        subnet = made.space.uniform(made.spec, bits)
        total = sum(table[unit][choice] for unit, choice in subnet)
        assert total == pytest.approx(measured[subnet].kl, rel=1e-6)
    embedding = table["model.embed_tokens"]
    assert embedding[made.space["model.embed_tokens"][-1]] == 0
    assert embedding[made.space["model.embed_tokens"][0]] > 0
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in table.values())
