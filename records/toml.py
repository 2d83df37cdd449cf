"""The one layer that every TOML file is read through, with the line of every key.

`tomllib` decides what a file says. It tells no lines but those of errors of syntax, and libraries that keep the layout
of a file (tomlkit) do not tell them either. So a scanner finds them in text that `tomllib` has accepted, and a test
holds that it finds the same keys.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records.errors import InputError, MissingError

MAX_BYTES = 2**20  # written by hand, or by a program that writes one table a device
Place = tuple[str | int, ...]
"""Keys and indices from the top of a file to a value."""


@dataclass(frozen=True)
class Toml:
    """What a file says, and on which line each key and each member of an array begins, from 1."""

    path: Path
    data: Mapping[str, Any]
    lines: Mapping[Place, int]

    def at(self, *place: str | int) -> str:
        """`fleet.toml:12`, of a place or of the nearest one around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return f"{self.path}:{self.lines.get(place, 1)}"


def read_toml(path: Path, what: str, remedy: str) -> Toml:
    """MissingError or InputError, one line with the place, for a file that is missing, too large or no TOML."""
    if not path.is_file():
        raise MissingError(f"no {what} at {path}; {remedy}")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"a {what} has at most {MAX_BYTES} bytes, {path} has {size}; {remedy}")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}), so not a {what}; {remedy}") from None
    except PermissionError:
        raise InputError(f"{path} may not be read by this user; give it the right to, or {remedy}") from None
    text = text.replace("\r\n", "\n")
    try:
        return Toml(path, tomllib.loads(text), lines_of(text))
    except RecursionError:
        raise InputError(f"{path} is nested too deep for a {what}; {remedy}") from None
    except ValueError as error:  # integers of thousands of digits are one, too
        said = str(error)
        found = re.search(r" \(at line (\d+), column \d+\)", said)
        line = int(found[1]) if found else text.count("\n") + 1
        said = said.replace(found[0], "") if found else said
        raise InputError(f"{path}:{line}: no TOML: {said:.200}; {remedy}") from None


_TOKEN = re.compile(
    r'''(?P<skip>[ \t]+|\#[^\n]*)
      | (?P<text>"""(?:[^\\]|\\.)*?"""(?:"{0,2})|\'\'\'.*?\'\'\'(?:'{0,2})|"(?:[^"\\]|\\.)*"|'[^']*')
      | (?P<mark>[][{},=.\n])
      | (?P<bare>[^][{},=.\n\s\#"']+)''',
    re.VERBOSE | re.DOTALL,
)


def lines_of(text: str) -> dict[Place, int]:
    """The line of every key and every member of an array in valid TOML."""
    return _Scanner(text).lines


class _Scanner:
    """Goes once through tokens, which are (kind, text, line); what a value is does not matter, only where it ends."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Place, int] = {}
        self.tables: dict[Place, int] = {}  # how many members the arrays of tables have by now
        self.tokens = _tokens(text)
        self.next()
        table: Place = ()
        while self.kind:
            if self.text == "\n":
                self.next()
            elif self.kind == "mark":  # [table] or [[table]]
                table = self.header()
            else:
                self.pair(table)

    def next(self) -> None:
        self.kind, self.text, self.line = next(self.tokens, ("", "", 0))

    def header(self) -> Place:
        self.next()
        twice = self.text == "["
        if twice:
            self.next()
        line, keys = self.line, self.key()
        place: Place = ()
        for number, key in enumerate(keys):
            place = (*place, key)
            self.lines.setdefault(place, line)
            if twice and number == len(keys) - 1:
                self.tables[place] = self.tables.get(place, 0) + 1
            if place in self.tables:
                place = (*place, self.tables[place] - 1)
                self.lines.setdefault(place, line)
        while self.text == "]":
            self.next()
        return place

    def pair(self, table: Place) -> None:
        line = self.line
        for key in self.key():
            table = (*table, key)
            self.lines.setdefault(table, line)
        self.next()  # =
        self.value(table)

    def key(self) -> list[str]:
        parts = []
        while self.text not in ("=", "]") or self.kind == "text":
            if self.kind != "mark":
                parts.append(self.text if self.kind == "bare" else str(tomllib.loads(f"k={self.text}")["k"]))
            self.next()
        return parts

    def value(self, place: Place) -> None:
        if self.kind != "mark" or self.text not in "[{":
            while self.kind and not (self.kind == "mark" and self.text in ",]}\n"):
                self.next()
            return
        opened, count = self.text, 0
        self.next()
        while self.kind:
            if self.kind == "mark" and self.text in "]}":
                self.next()
                return
            if self.kind == "mark" and self.text in ",\n":
                self.next()
            elif opened == "{":
                self.pair(place)
            else:
                self.lines[(*place, count)] = self.line
                self.value((*place, count))
                count += 1


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    line, end = 1, 0
    while end < len(text):
        found = _TOKEN.match(text, end)
        if found is None:  # nothing that valid TOML has
            return
        if found.lastgroup != "skip":
            yield str(found.lastgroup), found[0], line
        line += found[0].count("\n")
        end = found.end()
