"""How bitfleet talks: tables and JSON on stdout; notes and progress on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


def emit(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, allow_nan=False))


def note(text: str) -> None:
    """A line for the person at the terminal; never part of the data."""
    click.echo(text, err=True)


def first_process() -> bool:
    """Whether this is the process that talks, of those that `accelerate launch` starts."""
    return os.environ.get("RANK", "0") == "0"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their longest cell; the header, () for none, is bold on a terminal and plain in a pipe."""
    lines = [tuple(row) for row in (header, *rows) if row]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for number, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        click.echo(click.style(text, bold=True) if header and number == 0 else text)


def size(count: int | float | None) -> str:
    """Bytes as people read them: 1 MB is 10^6 bytes, as in the memory strings that `--mem` takes."""
    if count is None:
        return "-"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e3:.2f} s" if value >= 1e3 else f"{value:.1f} ms"


def rate(bytes_per_s: float | None) -> str:
    return "-" if bytes_per_s is None else f"{bytes_per_s / 1e9:.0f} GB/s"


@contextmanager
def progress() -> Iterator[Any]:
    """Gives `report(what, done, total=1.0)`: a bar on a terminal; lines elsewhere.

    What follows a comma in `what` may change within a stage: "train, KL 0.412".
    """
    if not sys.stderr.isatty():
        yield plain_report()
        return
    from rich.console import Console
    from rich.progress import Progress

    columns = Progress.get_default_columns()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: float, total: float = 1.0) -> None:
            stage = what.partition(",")[0]
            if stage not in tasks:
                tasks[stage] = bars.add_task(what, total=total)
            bars.update(tasks[stage], description=what, completed=done, total=total)

        yield report


def plain_report() -> Any:
    """A line when a stage begins, then at most one every ten seconds: a log stays short and never looks dead."""
    stage, last = "", 0.0

    def report(what: str, done: float, total: float = 1.0) -> None:
        nonlocal stage, last
        now, name = time.monotonic(), what.partition(",")[0]
        if name != stage or now - last >= 10:
            stage, last = name, now
            note(f"{100 * done / total if total else 100:3.0f} %  {what}")

    return report
