"""How bitfleet talks: tables and JSON on stdout; notes and progress on stderr.

Everything that a person reads goes through here, and here what came from a file (a model's name, a manifest's note) is
escaped: what would move the cursor, recolour, begin a new line or turn the direction of writing is shown as its code.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else there.")
TRUST = click.option(
    "--trust-remote-code", "trust", is_flag=True, help="Run the Python code that comes with the model."
)
# Control characters, marks and overrides of direction, separators of lines, invisible operators and tags, halves of
# surrogate pairs. Joiners of emoji and of Persian or Indic letters are none of these.
_ACTS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str, keep: str = "") -> str:
    """`text` with every character that acts on a terminal as its code, but those in `keep`."""
    return _ACTS.sub(lambda found: found[0] if found[0] in keep else _code(found[0]), text)


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


def say(text: str = "", *, bold: bool = False) -> None:
    """One line on stdout; bold on a terminal and plain in a pipe."""
    shown = printable(text)
    _write(sys.stdout, f"{click.style(shown, bold=True) if bold and sys.stdout.isatty() else shown}\n")


def stream(piece: str) -> None:
    """A part of a text of several lines on stdout, as soon as it is there."""
    _write(sys.stdout, printable(piece, keep="\n\t"))


def emit(data: Any) -> None:
    """One JSON value on stdout; what is not ASCII is escaped in it."""
    _write(sys.stdout, json.dumps(data, indent=2, allow_nan=False) + "\n")


def note(text: str, keep: str = "") -> None:
    """A line for the person at the terminal; never part of the data."""
    _write(sys.stderr, f"{printable(text, keep)}\n")


def _write(file: TextIO, text: str) -> None:
    """As the stream encodes it: click would write UTF-8 to a terminal that says ASCII."""
    file.write(text)
    file.flush()


def first_process() -> bool:
    """Whether this is the process that talks, of those that `accelerate launch` starts."""
    return os.environ.get("RANK", "0") == "0"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their longest cell; the header, () for none, is bold on a terminal and plain in a pipe."""
    lines = [tuple(printable(cell) for cell in row) for row in (header, *rows) if row]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for number, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        say(text, bold=bool(header) and number == 0)
