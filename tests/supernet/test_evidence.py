"""What a model says, kept small: exact where it is kept, and near the whole where it is compared."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from records.errors import InputError, MissingError
from supernet.evidence import ARRAYS, PROMPT, continues, corrected, hidden, long, read_evidence, says, write_evidence
from supernet.model import spec_of_model
from supernet.said import STEPS, TOP, Continuation, Said, split
from tests.tiny import tiny_model, tiny_tokenizer, windows

FAMILIES = ("llama", "gemma2", "phi", "qwen2")
STEP = 1 / STEPS + 1e-5  # that, and float32's precision


def logits(model: Any, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(ids).long()[None]).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_evidence_is_what_the_model_says(family: str, tmp_path: Path) -> None:
    """A vocabulary of several stretches; log probabilities to a step, greedy text by transformers' own."""
    model, path = tiny_model(family, vocab_size=9000), tmp_path / "proof.safetensors"
    spec = spec_of_model(model, family)
    write_evidence(path, model, tiny_tokenizer(), windows(4, 64), spec)
    found = load_file(path)
    said, texts = Said.of("model", found), list(split(found["tokens"], found["lengths"]))
    assert [len(text) for text in texts] == [64] * 4 + [128] * 5  # the long one is as long as the model allows
    start = 0
    for text in texts[:5]:
        true = logits(model, text)
        top = true.topk(TOP)
        here = said.at(slice(start, start + len(text)))
        assert np.abs(here.log_probs[:, :TOP] - top.values.numpy()).max() < STEP
        assert np.abs(here.log_probs - true.gather(1, torch.from_numpy(here.ids).long()).numpy()).max() < STEP
        assert np.abs(here.rest - (1 - top.values.exp().sum(-1).numpy())).max() < STEP
        assert np.array_equal(here.log_probs, np.round(here.log_probs * STEPS) / STEPS)
        start += len(text)
    prompts = torch.from_numpy(found["prompts"]).long()
    greedy = model.generate(prompts, max_new_tokens=32, min_new_tokens=32, do_sample=False)[:, PROMPT:]
    assert np.array_equal(greedy.numpy(), found["continued.tokens"])
    assert (found["continued.margins"] >= 0).all()


def test_the_long_window_passes_every_limit() -> None:
    def tokens(family: str, **changes: Any) -> int:
        model = tiny_model(family, **changes)
        return long(model, spec_of_model(model, family))

    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert tokens("llama", max_position_embeddings=512) == 512
    assert tokens("llama", max_position_embeddings=32768) == 4096
    assert tokens("mistral", max_position_embeddings=32768, sliding_window=4096) == 4096 + 128
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 6000}
    assert tokens("llama", max_position_embeddings=32768, rope_parameters=yarn) == 6128
    assert tokens("llama", max_position_embeddings=2048, rope_parameters=rope) == 2048


def test_what_takes_too_long_is_cut_and_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bitfleet")
    model, texts = tiny_model(), list(windows(3, 100))
    lengths = [len(part) for part in hidden(model, texts, seconds=0.0)]
    assert lengths == [100, 1, 1]
    assert "at 102 of 300 tokens" in caplog.text
    caplog.clear()
    assert [len(part) for part in hidden(model, texts, seconds=600.0)] == [100, 100, 100]
    assert not caplog.text


@pytest.mark.parametrize("vocabulary", [40, 2000, 9000])
@pytest.mark.parametrize("sure", [1.0, 6.0], ids=["flat", "sure"])
def test_the_kl_of_what_is_kept_is_near_the_true_one(vocabulary: int, sure: float) -> None:
    model, other = (tiny_model(vocab_size=vocabulary, pad_token_id=0, seed=seed) for seed in range(2))
    for name, parameter in other.named_parameters():  # between the two
        parameter.mul_(0.03).add_(0.97 * dict(model.named_parameters())[name])
    for one in (model, other):  # as trained models are of some tokens, or as random ones of all
        one.get_input_embeddings().weight.mul_(sure)
    ids = windows(3, 128).flatten() % vocabulary
    said, _ = says(model, hidden(model, [ids])[0], draw=True)
    _, theirs = says(other, hidden(other, [ids])[0], said.ids)
    p, q = logits(model, ids.numpy()), logits(other, ids.numpy())
    true = (p.exp() * (p - q)).sum(-1).numpy()
    kept = said.kl(theirs.log_probs, theirs.rest)
    assert kept.mean() == pytest.approx(true.mean(), rel=0.05, abs=2e-5)
    assert (kept > -STEP).all() and np.abs(said.kl(said.log_probs, said.rest)).max() < 1e-5
    undrawn = Said(said.ids[:, :TOP], said.log_probs[:, :TOP], said.rest)  # as proofs of before have it
    assert undrawn.kl(theirs.log_probs[:, :TOP], theirs.rest).mean() <= true.mean() + 2e-5


def test_what_is_drawn_is_drawn_as_likely_as_it_is() -> None:
    """From all but the likeliest, over stretches of the vocabulary; the same each time."""
    model = tiny_model(vocab_size=9000)
    read = hidden(model, [windows(1, 128)[0]])[0][-1:].repeat(3000, 1)
    said, _ = says(model, read, draw=True)
    likeliest, drawn = said.ids[0, :TOP], said.ids[:, TOP:].flatten()
    assert not np.isin(drawn, likeliest).any()
    with torch.no_grad():
        probs = model.lm_head(read[:1])[0].double().softmax(-1).numpy()
    probs[likeliest] = 0
    parts = np.bincount(drawn // 500, minlength=18) / len(drawn)
    wanted = np.add.reduceat(probs, np.arange(0, 9000, 500)) / probs.sum()
    assert np.abs(parts - wanted).max() < 0.01
    assert np.array_equal(says(model, read, draw=True)[0].ids, said.ids)


def test_of_tokens_that_are_equally_likely_those_of_smaller_ids_are_kept() -> None:
    """Within a step, whatever stretch of the vocabulary they are in."""
    model = tiny_model(vocab_size=9000)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    read = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(says(model, read)[0].ids, np.tile(np.arange(TOP), (3, 1)))
    with torch.no_grad():
        model.get_input_embeddings().weight[[8500, 8300]] = torch.sign(read[:1]) / torch.tensor([[1.0], [1.000001]])
    said, asked = says(model, read[:1], np.array([[8500, 8300, 7]], np.int32))
    assert said.ids[0, :3].tolist() == [8300, 8500, 0]
    assert np.array_equal(said.log_probs[0, :3], asked.log_probs[0])
    assert said.log_probs[0, 0] == said.log_probs[0, 1] > said.log_probs[0, 2]


def test_a_draft_is_corrected_to_what_follows() -> None:
    model, prompts = tiny_model(), windows(3, 16)
    right = continues(model, prompts, 12)
    for wrong in (right.tokens * 0, np.where(np.arange(12) == 5, 7, right.tokens).astype(np.int32), right.tokens):
        found = corrected(model, prompts, Continuation(wrong, right.margins))
        assert np.array_equal(found.tokens, right.tokens)
        assert np.abs(found.margins - right.margins).max() < 2 * STEP
    assert corrected(model, prompts, continues(model, prompts, 0)).tokens.shape == (3, 0)


def test_windows_that_are_read_together_are_read_as_each_by_itself() -> None:
    model, texts = tiny_model(), [*windows(3, 40), *windows(2, 30), *windows(1, 40)]
    together, apart = hidden(model, texts), hidden(model, texts, seconds=600.0)
    assert [len(part) for part in together] == [40, 40, 40, 30, 30, 40]
    for ours, theirs in zip(together, apart, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_evidence_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "proof.safetensors"
    arrays = {name: np.zeros(3, np.int32) for name in ARRAYS}
    save_file(arrays, path)
    assert read_evidence(path).keys() == arrays.keys()
    for name in ARRAYS:
        save_file({other: array for other, array in arrays.items() if other != name}, path)
        with pytest.raises(InputError, match=f"lacks {name};"):
            read_evidence(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged"):
        read_evidence(path)
    path.unlink()
    with pytest.raises(MissingError, match="no such file"):
        read_evidence(path)
