"""Text as a stream of pieces, however long it is: from a file, a pipe, standard input or a data set."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from records.errors import InputError, MissingError, NotInstalledError
from supernet.text.records import Piece, piece_of

STANDARD_INPUT = "-"
PLAIN, LINES = (".txt", ".text", ".md"), (".jsonl", ".ndjson")
READ = "text is read from .txt, .md, .jsonl and .ndjson files, or from - which is standard input"
PIECE = 2**14  # characters of plain text that are handed on together
LONGEST = 2**26  # bytes of one JSON record
CONVERT = "convert it to UTF-8 text first, with iconv for example"


def check_source(source: str) -> None:
    """InputError or MissingError for what a look at a file tells: it is missing, empty, a folder, another kind, or what
    it begins with is no text. What can be read only once, a pipe, is not looked into."""
    _check_kind(source)
    if Path(source).is_file() and next(pieces(source), None) is None:
        raise InputError(f"{source} is empty; give text")


def _check_kind(source: str) -> None:
    path = Path(source)
    suffix = path.suffix.lower()
    if source == STANDARD_INPUT:
        return
    if not path.exists():
        if suffix in PLAIN + LINES or path.is_absolute() or source.count("/") > 1:
            raise MissingError(f"no such text file: {source}; {READ}")
        return  # the name of a data set, perhaps
    if path.is_dir():
        raise InputError(f"{READ}; {source} is a folder")
    if not (path.is_file() or path.is_fifo()):
        raise InputError(f"{READ}; {source} is a device")
    if suffix and suffix not in PLAIN + LINES:
        raise InputError(f"{READ}; {source} is another kind: convert it, or rename it if it is plain text")


def pieces(source: str) -> Iterator[Piece]:
    """The text in order, in pieces of bounded size. A file or a pipe without a suffix is JSON lines where its first
    line is a JSON object, else plain text.

    InputError or MissingError, one line that names the record where there is one, for what is no text.
    """
    _check_kind(source)
    if source != STANDARD_INPUT and not Path(source).exists():
        yield from _dataset(source)
        return
    suffix = "" if source == STANDARD_INPUT else Path(source).suffix.lower()
    with _opened(source) as file:
        if suffix in PLAIN:
            yield from _plain(file, source)
        elif suffix in LINES:
            yield from _records(_lines(file, source), source)
        else:
            first = file.readline(PIECE)
            if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                yield from _records(_lines(file, source, first), source)
            else:
                yield from _plain(file, source, first)


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    if source == STANDARD_INPUT:
        if sys.stdin is None:
            raise InputError("there is no standard input to read text from; pipe one in, or name a file")
        yield sys.stdin.buffer
        return
    with Path(source).open("rb") as file:
        yield file


def _plain(file: IO[bytes], source: str, first: bytes = b"") -> Iterator[str]:
    """Pieces that end where a line ends, or else a word."""
    whole: Any = _Behind(first, file) if first else file
    text = io.TextIOWrapper(whole, encoding="utf-8-sig")
    rest = ""
    try:
        while block := text.read(PIECE):
            if "\0" in block:
                raise InputError(f"{source} is no text: it has NUL bytes, as binary files and UTF-16 do; {CONVERT}")
            rest += block
            cut = rest.rfind("\n") + 1 or max(rest.rfind(" "), 0) or len(rest)
            yield rest[:cut]
            rest = rest[cut:]
    except UnicodeDecodeError as error:
        raise InputError(f"text must be UTF-8, {source} is not ({error.reason}); {CONVERT}") from None
    finally:
        text.detach()
    if rest:
        yield rest


class _Behind(io.BufferedIOBase):
    """A stream again from its beginning, of which `first` has been read."""

    def __init__(self, first: bytes, rest: IO[bytes]) -> None:
        self._first, self._rest = first, rest

    def readable(self) -> bool:
        return True

    def read1(self, size: int | None = -1, /) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        return self._rest.read(PIECE if size is None or size < 0 else size)

    read = read1


def _lines(file: IO[bytes], source: str, first: bytes = b"") -> Iterator[bytes]:
    """Lines by the rules of JSON lines: the newline ends one, and no other character does."""
    while line := first if first.endswith(b"\n") else first + file.readline(LONGEST + 1 - len(first)):
        first = b""
        if len(line) > LONGEST:
            raise InputError(f"a record must be within {LONGEST // 2**20} MB, {source} has a longer line; split it")
        yield line


def _records(lines: Iterator[bytes], source: str) -> Iterator[Piece]:
    first = next(lines, b"").removeprefix(b"\xef\xbb\xbf")
    number = 0
    for line_number, line in enumerate(chain([first], lines), 1):
        if not line.strip():
            continue
        number += 1
        where = f"record {number} (line {line_number} of {source})"
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"text must be UTF-8, {where} is not ({error.reason}); {CONVERT}") from None
        except json.JSONDecodeError as error:
            raise InputError(f"every line must be a JSON object, {where} is not ({error.msg})") from None
        except (ValueError, RecursionError):
            raise InputError(f"every line must be a JSON object, {where} is nested too deep or too long") from None
        yield from _parts(piece_of(record, where))


def _parts(piece: Piece) -> Iterator[Piece]:
    """A long text in pieces of bounded size."""
    if not isinstance(piece, str):
        yield piece
        return
    for start in range(0, len(piece), PIECE):
        yield piece[start : start + PIECE]


def _dataset(name: str) -> Iterator[Piece]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise NotInstalledError(
            f"{name} is not a file, and data sets need an extra package; run: pip install 'bitfleet[datasets]'"
        ) from None
    try:
        rows = load_dataset(name, split="train")
    except Exception:
        raise InputError(f"{name} is neither a file nor a data set that can be reached; {READ}") from None
    for number, row in enumerate(rows, 1):
        yield from _parts(piece_of(row, f"row {number} of {name}"))
