"""What a model writes for itself, and what is seen of it when it is looked at."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from supernet.labels import draw
from supernet.text import manual_windows, own_windows, sample_windows
from supernet.text.degenerate import LOOPS, look, repeated_share
from supernet.text.sampling import CACHE_BYTES, LEAST, SAMPLED_AT_ONCE, Written, _affordable, sequences_at_once
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("first", [(), (256,), (256, 5)])
def test_a_model_writes_its_own_text(first: tuple[int, ...]) -> None:
    model = tiny_model()
    done: list[int] = []
    written = sample_windows(model, 5, 24, 3, lambda what, now, total: done.append(now), first)
    windows = written.windows
    assert windows.shape == (5, 24)
    assert windows[:, : len(first)].tolist() == [list(first)] * 5
    assert not (windows[:, len(first) :] == model.generation_config.eos_token_id).any()
    assert len(set(map(tuple, windows.tolist()))) == 5
    assert done[-1] == 5 * 24
    assert all(now <= later for now, later in pairwise(done))
    assert torch.equal(windows, sample_windows(model, 5, 24, 3, first=first).windows)


def test_sampled_text_is_as_likely_as_the_model_says() -> None:
    model = tiny_model()
    written = sample_windows(model, 64, 24, seed=3, first=(256,))
    logits = model(written.windows).logits[:, :-1].index_fill(-1, torch.tensor(257), -torch.inf)
    likelihood = logits.log_softmax(-1).gather(-1, written.windows[:, 1:].unsqueeze(-1)).mean()
    assert written.perplexity == pytest.approx(math.exp(-likelihood.item()), rel=1e-3)
    distribution = torch.distributions.Categorical(logits=logits)
    assert likelihood.item() == pytest.approx(-distribution.entropy().mean().item(), abs=0.05)


def test_as_many_windows_are_written_as_the_time_allows() -> None:
    model = tiny_model()
    hurried = sample_windows(model, 64, 100, seed=3, first=(256,), seconds=1e-6)
    assert hurried.windows.shape == (LEAST, 100)
    assert len(sample_windows(model, 40, 32, seed=3, seconds=600.0).windows) == 40
    assert _affordable(100, steps=200, step=100, spent=10.0, seconds=20.0) == 100
    assert _affordable(100, steps=200, step=100, spent=10.0, seconds=15.0) == 50
    assert _affordable(100, steps=200, step=100, spent=10.0, seconds=9.0) == LEAST
    assert _affordable(8, steps=200, step=100, spent=10.0, seconds=0.0) == 8


def test_drawing_follows_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3]).expand(20_000, 4)
    drawn = draw(probabilities, torch.Generator().manual_seed(0)).flatten()
    shares = torch.bincount(drawn, minlength=4) / 20_000
    assert shares[1] == 0
    assert torch.allclose(shares, probabilities[0], atol=0.015)


def test_fewer_sequences_are_written_where_their_cache_would_be_large() -> None:
    config = tiny_config()
    assert sequences_at_once(config, 256, 2) == SAMPLED_AT_ONCE
    config.num_hidden_layers = 2**14
    cached = 2 * 2**14 * 2 * 16 * 2 * 256  # keys and values, layers, heads, their size, bytes, tokens
    assert sequences_at_once(config, 256, 2) == CACHE_BYTES // cached == 4
    assert sequences_at_once(config, 4096, 2) == 1


def test_repeats_are_counted() -> None:
    assert repeated_share(torch.arange(100)) == 0
    assert repeated_share(torch.zeros(103)) == 0.99  # 100 4-grams, 1 of them new
    assert repeated_share(torch.arange(103) % 10) == 0.9
    assert repeated_share(torch.tensor([1, 2])) == 0


def test_a_look_at_degenerate_lots() -> None:
    manual = manual_windows(tiny_tokenizer(), 16, 256, "measure")
    healthy = look(manual, perplexity=30.0)
    assert healthy.good == tuple(range(16))
    assert max(healthy.repeated) < LOOPS
    assert not healthy.degenerate
    constant = look(torch.full((16, 256), 7), perplexity=1.0)
    assert constant.entropy == 0
    assert constant.good == ()
    assert constant.degenerate
    assert look(manual[:1].expand(16, -1), perplexity=30.0).good == (0,)  # copies
    assert look(manual, perplexity=1.1).degenerate  # it knows each next token
    few = torch.randint(4, (16, 256), generator=torch.Generator().manual_seed(0))
    assert look(few, perplexity=4.0).degenerate
    loop = manual[:, :8].repeat(1, 32)
    assert look(loop, perplexity=20.0).degenerate
    mixed = look(torch.cat([manual, loop[:4]]), perplexity=20.0)
    assert mixed.good == tuple(range(16))
    assert not mixed.degenerate
    assert look(torch.cat([torch.full((16, 1), 256), manual], 1), 1).repeated == healthy.repeated


def test_a_model_that_loops_learns_from_the_manual_instead(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = tiny_model(tie_word_embeddings=False), tiny_tokenizer("<s> $A")
    model.lm_head.weight[:] = 0.0
    model.lm_head.weight[65] = 40 * model.model.norm(model.model.embed_tokens.weight[65])  # says A, whatever comes
    model.model.embed_tokens.weight[:] = model.model.embed_tokens.weight[65]
    with caplog.at_level("INFO", logger="bitfleet"):
        windows, said = own_windows(model, tokenizer, 8, 64, seed=0)
    assert torch.equal(windows, manual_windows(tokenizer, 8, 64, "train"))
    assert said == "the Python manual in place of degenerate text of the full model"
    (line,) = caplog.messages
    assert line.startswith("what the full model writes is degenerate (8 of 8 windows are loops or copies, ")
    healthy, text = own_windows(tiny_model(), tokenizer, 8, 64, seed=0)
    assert text == "sampled from the full model"
    assert healthy.shape == (8, 64)


def test_single_loops_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    written = manual_windows(tokenizer, 8, 64, "trial")
    written[2], written[5] = 7, written[4]  # a loop and a copy
    monkeypatch.setattr("supernet.text.own.sample_windows", lambda *_: Written(written, 30.0))
    windows, said = own_windows(tiny_model(), tokenizer, 8, 64, seed=0)
    assert said == "sampled from the full model, 2 windows of the Python manual among it"
    found = {tuple(window) for window in windows.tolist()}
    good = {tuple(window) for number, window in enumerate(written.tolist()) if number not in (2, 5)}
    assert found == good | {tuple(window) for window in manual_windows(tokenizer, 2, 64, "train").tolist()}
