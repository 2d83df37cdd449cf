"""Text in every form it may come in, and what is said of text that will not do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from supernet.text import (
    CACHE_BYTES,
    SAMPLED_AT_ONCE,
    draw,
    read_windows,
    sample_windows,
    sequences_at_once,
    spread_windows,
)
from tests.tiny import TEXT, tiny_config, tiny_model, tiny_tokenizer


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_plain_text_gives_its_first_windows(plain: Path) -> None:
    tokenizer = tiny_tokenizer()
    windows = read_windows(str(plain), tokenizer, 3, 32)
    assert windows.shape == (3, 32)
    assert tokenizer.decode(windows.flatten()) == TEXT[:96]


def test_spread_windows_come_from_all_over_and_repeat(plain: Path) -> None:
    tokenizer = tiny_tokenizer()
    windows = spread_windows(str(plain), tokenizer, 8, 32, seed=1)
    assert windows.shape == (8, 32)
    assert all(tokenizer.decode(window) in TEXT for window in windows)
    assert len({tuple(window.tolist()) for window in windows}) > 1
    assert torch.equal(windows, spread_windows(str(plain), tokenizer, 8, 32, seed=1))
    assert not torch.equal(windows, spread_windows(str(plain), tokenizer, 8, 32, seed=2))


@pytest.mark.parametrize(
    "record", [{"text": "abcd efgh"}, {"instruction": "abcd", "input": "", "output": "efgh"}], ids=["text", "alpaca"]
)
def test_json_lines(record: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("\n\n".join([json.dumps(record)] * 20))
    windows = read_windows(str(path), tiny_tokenizer(), 2, 32)
    text = tiny_tokenizer().decode(windows[0])
    assert text.startswith("abcd")
    assert "efgh\nabcd" in text


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("short.txt", b"too short", r"must have 4 windows of 32 tokens, .* has 9 tokens, enough for 0; give more text"),
        ("latin.txt", "caf\u00e9 ".encode("latin-1") * 500, "text must be UTF-8"),
        ("broken.jsonl", b'{"text": "a"}\n{"text"\n', "every line must be a JSON object, record 2 is not"),
        (
            "other.jsonl",
            b'{"title": "a"}\n',
            "a record needs `text`, or `instruction` and `output`, record 1 has",
        ),
        ("list.jsonl", b"[1]\n", "record 1 has neither"),
    ],
)
def test_bad_text_is_one_clear_line(name: str, content: bytes, error: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=error) as raised:
        read_windows(str(path), tiny_tokenizer(), 4, 32)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such text file"):
        read_windows(str(tmp_path / "none.txt"), tiny_tokenizer(), 1, 8)
    with pytest.raises(ValueError, match="is a folder; give a .txt or .jsonl file"):
        read_windows(str(tmp_path), tiny_tokenizer(), 1, 8)


def test_a_data_set_needs_its_package_or_the_network() -> None:
    with pytest.raises((ValueError, ImportError), match=r"neither a file nor a data set|pip install"):
        read_windows("somebody/some-data", tiny_tokenizer(), 1, 8)


def test_too_little_to_spread(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a few words")
    with pytest.raises(ValueError, match="must have at least 2 windows of 32 tokens"):
        spread_windows(str(tmp_path / "text.txt"), tiny_tokenizer(), 2, 32, seed=0)


def test_a_model_writes_its_own_text() -> None:
    model = tiny_model()
    done: list[int] = []
    windows = sample_windows(model, 5, 24, seed=3, progress=lambda what, now, total: done.append(now))
    assert windows.shape == (5, 24)
    assert not (windows == model.generation_config.eos_token_id).any()
    assert len(set(map(tuple, windows.tolist()))) == 5
    assert done[-1] == 5 * 24
    assert torch.equal(windows, sample_windows(model, 5, 24, seed=3, progress=lambda *_: None))


def test_sampled_text_is_as_likely_as_the_model_says() -> None:
    model = tiny_model()
    windows = sample_windows(model, 64, 24, seed=3, progress=lambda *_: None)
    log_probs = model(windows).logits[:, :-1].log_softmax(-1)
    likelihood = log_probs.gather(-1, windows[:, 1:].unsqueeze(-1)).mean()
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    assert likelihood.item() == pytest.approx(-entropy.item(), abs=0.05)


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
