"""Windows of every source begin as the tokenizer begins a text, and memory does not grow with the text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from records.errors import InputError
from supernet.text import beginning, manual_windows, own_windows, read_windows, spread_windows
from supernet.text.windows import USES
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
TOKENIZERS = {  # what a tokenizer makes of a text -> what all its texts begin with
    None: (),
    "<s> $A": (256,),
    "<s> $A </s>": (256,),
    "$A </s>": (),
    "<s> </s> $A": (256, 257),
}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(("single", "first"), TOKENIZERS.items())
def test_every_window_begins_as_the_tokenizer_begins_a_text(
    single: str | None, first: tuple[int, ...], plain: Path
) -> None:
    tokenizer = tiny_tokenizer(single, TEMPLATE)
    chats = plain.with_suffix(".jsonl")
    chats.write_text('{"messages": [{"role": "user", "content": "' + "why? " * 20 + '"}]}\n')
    assert beginning(tokenizer) == first
    assert tuple(tokenizer("a text")["input_ids"][: len(first)]) == first
    own = own_windows(tiny_model(), tokenizer, 4, 24, seed=0)[0]
    lots = [
        read_windows(str(plain), tokenizer, 3, 24),
        spread_windows(str(plain), tokenizer, 8, 24, seed=0),
        spread_windows(str(chats), tokenizer, 8, 24, seed=0),
        own,
        *(manual_windows(tokenizer, 4, 24, use) for use in USES),
    ]
    for windows in lots:
        assert windows.shape[1] == 24
        assert windows.dtype == torch.int64
        assert windows[:, : len(first)].tolist() == [list(first)] * len(windows)
    assert not any(258 > token >= 256 for token in lots[0][:, len(first) :].flatten())  # and nothing else was added


def test_a_chat_is_written_by_the_models_template(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "why?"}]}\n' * 4)
    window = read_windows(str(tmp_path / "chat.jsonl"), tiny_tokenizer("<s> $A", TEMPLATE), 1, 24)[0]
    letters = tiny_tokenizer()("<user>why?", add_special_tokens=False)["input_ids"]
    assert window.tolist() == [256, *letters, 257, *letters, 257, *letters][:24]
    with pytest.raises(InputError, match=r"record 1 .* is a chat, and the model has no chat template"):
        read_windows(str(tmp_path / "chat.jsonl"), tiny_tokenizer("<s> $A"), 1, 24)
    with pytest.raises(InputError, match=r"the model's chat template refuses record 1 .*: no users here"):
        read_windows(
            str(tmp_path / "chat.jsonl"), tiny_tokenizer(None, "{{ raise_exception('no users here') }}"), 1, 24
        )


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


def test_all_of_a_short_text_is_used(plain: Path) -> None:
    tokenizer = tiny_tokenizer()
    windows = spread_windows(str(plain), tokenizer, 1000, 16, seed=0)
    assert len(windows) == len(TEXT) // 16
    assert sorted(map(tokenizer.decode, windows)) == sorted(TEXT[i : i + 16] for i in range(0, len(TEXT) - 15, 16))


def test_a_long_text_is_read_all_over(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"{number:08d}\n" for number in range(400_000)))
    windows = spread_windows(str(path), tiny_tokenizer(), 64, 32, seed=0)
    found = sorted(int(tiny_tokenizer().decode(window).split("\n")[1]) for window in windows)
    assert len(windows) == 64
    quarters = {number // 100_000 for number in found}
    assert quarters == {0, 1, 2, 3}
    assert len({number // 2000 for number in found}) > 30  # and not from a few places alone
    assert torch.equal(windows, spread_windows(str(path), tiny_tokenizer(), 64, 32, seed=0))


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Measured in a process of its own, since a peak never falls."""
    code = (
        "import sys; from resource import RUSAGE_SELF, getrusage\n"
        "from supernet.text import spread_windows; from tests.tiny import tiny_tokenizer\n"
        "for path in sys.argv[1:]:\n"
        "    spread_windows(path, tiny_tokenizer(), 64, 64, 0)\n"
        "    print(getrusage(RUSAGE_SELF).ru_maxrss)\n"
    )
    paths = [tmp_path / "1.txt", tmp_path / "16.txt"]
    for path in paths:
        path.write_text((TEXT * 1600)[:1_000_000] * int(path.stem))
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    short, long = (int(line) * 1024 for line in done.stdout.split())
    assert long < short + 8e6


def test_too_little_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a few words")
    with pytest.raises(InputError, match=r"must have at least 2 windows of 32 tokens, .* has 11 tokens; give more"):
        spread_windows(str(tmp_path / "text.txt"), tiny_tokenizer(), 2, 32, seed=0)
    with pytest.raises(InputError, match=r"must have 4 windows of 8 tokens, .* 11 tokens, enough for 1; give more"):
        read_windows(str(tmp_path / "text.txt"), tiny_tokenizer(), 4, 8)
    with pytest.raises(InputError, match="a window must be longer than the 1 tokens"):
        read_windows(str(tmp_path / "text.txt"), tiny_tokenizer("<s> $A"), 4, 1)


def test_text_of_another_kind_comes_with_python() -> None:
    tokenizer = tiny_tokenizer()
    lots = [manual_windows(tokenizer, 30, 64, use) for use in USES]
    together = torch.cat(lots)
    assert together.shape == (90, 64)
    assert len({tuple(row) for row in together.tolist()}) == 90  # no window serves two of them
    assert torch.equal(lots[0], manual_windows(tokenizer, 30, 64, USES[0]))
    assert len(manual_windows(tokenizer, 10**6, 4096, "train")) < 100
