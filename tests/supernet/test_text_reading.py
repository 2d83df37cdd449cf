"""Text in every form it may come in, and what is said of what is no text."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from pathlib import Path

import pytest

from records.errors import InputError, MissingError
from supernet.text.reading import LONGEST, PIECE, check_source, pieces
from supernet.text.records import Chat


def read(path: Path | str) -> str:
    return "".join(piece for piece in pieces(str(path)) if isinstance(piece, str))


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", b"one\r\ntwo\n", "one\ntwo\n"),
        ("a.TXT", b"\xef\xbb\xbfone", "one"),
        ("a.md", "ein Wörtchen".encode(), "ein Wörtchen"),
        ("bare", b"\xef\xbb\xbfno suffix", "no suffix"),
        ("bare", b'\xef\xbb\xbf{"text": "lines"}\n', "lines\n"),
        ("bare", b'\n{"text": "no lines: the first is empty"}\n', '\n{"text": "no lines: the first is empty"}\n'),
        ("a.jsonl", '{"text": "one\u2028two\u0085three"}\n{"text": "4"}'.encode(), "one\u2028two\u0085three\n4\n"),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\n  \n{"text": "two"}\n', "one\ntwo\n"),
        ("A.JSONL", b'{"text": "one"}\n', "one\n"),
        ("a.ndjson", b'{"prompt": "one", "completion": "two"}\n', "one\ntwo\n"),
        ("a.NdJson", b'{"instruction": "one", "input": "", "output": "two", "id": 3}\n', "one\ntwo\n"),
        ("a.jsonl", b'{"instruction": "one", "input": null, "output": "two"}\n', "one\ntwo\n"),
        ("a.jsonl", b'{"text": "half a pair \\ud83d"}\n', "half a pair ?\n"),
    ],
)  # fmt: skip
def test_text_is_read(name: str, content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == text


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "why?"}]},
                      {"role": "assistant", "content": "so"}]},
        {"conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}]},
    ],
)  # fmt: skip
def test_chats_are_read(record: object, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (chat,) = pieces(str(tmp_path / "a.jsonl"))
    assert isinstance(chat, Chat)
    assert chat.messages == ({"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"})


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.txt", "café ".encode("latin-1") * 500, "text must be UTF-8, .*a.txt is not"),
        ("a.txt", "café ".encode("utf-16") * 500, "text must be UTF-8, .*a.txt is not"),
        ("a.txt", "cafe ".encode("utf-16-le") * 500, "a.txt is no text: it has NUL bytes"),
        ("a.txt", bytes(range(128)), "a.txt is no text: it has NUL bytes"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text"\n', r"record 2 \(line 3 of .*a.jsonl\) is not"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', r"text must be UTF-8, record 1 \(line 1"),
        ("a.jsonl", b'{"title": "a", "content": "b"}\n', "record 1 .* has 'title', 'content'"),
        ("a.jsonl", b"{}\n", "record 1 .* has no fields"),
        ("a.jsonl", b"[1]\n", "must be a JSON object, record 1 .* is list"),
        ("a.jsonl", b'{"text": 3}\n', "text must be text, record 1 .* has int"),
        ("a.jsonl", b'{"messages": []}\n', "`messages` must be a list of messages, record 1"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "must have `role` and `content` as text, record 1"),
        ("a.jsonl", b'{"messages": ["hi"]}\n', "a message must be an object"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "record 1 .* is nested too deep"),
        ("a.jsonl", b"9" * 10_000 + b"\n", "record 1 .* is nested too deep or too long"),
        ("a.json", b'[{"text": "a"}]', "read from .txt, .md, .jsonl and .ndjson files.*a.json is another kind"),
        ("a.csv", b"id,text\n", "a.csv is another kind"),
        ("a.txt.gz", b"\x1f\x8b", "a.txt.gz is another kind"),
        ("a.parquet", b"PAR1", "a.parquet is another kind"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_one_clear_line(name: str, content: bytes, error: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=error) as raised:
        list(pieces(str(tmp_path / name)))
    assert "\n" not in str(raised.value)


def test_missing_files_folders_and_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("none.txt", "none.JSONL"):
        with pytest.raises(MissingError, match="no such text file"):
            check_source(str(tmp_path / name))
    with pytest.raises(InputError, match="is a folder"):
        check_source(str(tmp_path))
    with pytest.raises(InputError, match="is a device"):
        check_source("/dev/null")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="there is no standard input"):
        list(pieces("-"))
    for content, error in ((b"", "is empty; give text"), (b"\0\1", "is no text"), (b"\xff\xfe", "must be UTF-8")):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(InputError, match=error):
            check_source(str(tmp_path / "a.txt"))
    (tmp_path / "a.jsonl").write_text('{"title": "no text"}')
    with pytest.raises(InputError, match="record 1 .* has 'title'"):
        check_source(str(tmp_path / "a.jsonl"))


def test_a_data_set_needs_its_package_or_the_network() -> None:
    with pytest.raises((InputError, ImportError), match=r"neither a file nor a data set|pip install"):
        list(pieces("somebody/some-data"))


def test_pieces_are_short_and_end_where_words_end(tmp_path: Path) -> None:
    text = "word " * 20_000
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    for name in ("a.txt", "a.jsonl"):
        found = list(pieces(str(tmp_path / name)))
        assert max(map(len, found)) <= 2 * PIECE
        assert "".join(map(str, found)).rstrip("\n") == text
    assert all(str(piece).startswith((" ", "word")) for piece in pieces(str(tmp_path / "a.txt")))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LONGEST == 2**26
    monkeypatch.setattr("supernet.text.reading.LONGEST", 2**20)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "a" * 2**20 + '"}')
    with pytest.raises(InputError, match="a record must be within 1 MB"):
        list(pieces(str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize(
    ("text", "expected"), [("plain\ntext", "plain\ntext"), ('{"text": "lines"}\n' * 2, "lines\n" * 2)]
)
@pytest.mark.parametrize("where", ["standard input", "a pipe"])
def test_standard_input_and_pipes(
    where: str, text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(text,))
    writer.start()
    if where == "a pipe":
        assert read(tmp_path / "pipe") == expected
    else:
        with (tmp_path / "pipe").open() as pipe:
            monkeypatch.setattr(sys, "stdin", pipe)
            assert read("-") == expected
    writer.join()


RECORDS = (
    {"text": "hello wörld " * 9},
    {"instruction": "a", "input": None, "output": "b" * 50},
    {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [{"type": "text", "text": "yo"}]},
        ]
    },
    {"conversations": [{"from": "human", "value": "x" * 40}]},
)
INSERTED = (
    b'"',
    b"{",
    b"]",
    b"\\u",
    b"\n",
    b"null",
    b"1e999",
    b"\xff\xfe",
    b"\0",
    b"\xe2\x80\xa8",
    b"\\ud800",
    b"true",
)


def test_damaged_text_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    whole, rng = "\n".join(map(json.dumps, RECORDS)).encode(), random.Random(0)
    outcomes = []
    for _ in range(2000):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 2, 5))):
            at = rng.randrange(len(content))
            content[at : at + rng.choice((0, 0, 1, 20))] = rng.choice((*INSERTED, b"", rng.randbytes(2)))
        path = tmp_path / rng.choice(("a.jsonl", "a.NDJSON", "a.txt", "a"))
        path.write_bytes(content)
        try:
            outcomes.append(sum(map(len, pieces(str(path)))) > 0)
        except InputError as error:
            assert "\n" not in str(error)
            outcomes.append(False)
    assert 200 < sum(outcomes) < 1800  # and neither is what happens to all
