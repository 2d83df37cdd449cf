"""What a person sees who waits: a bar on a terminal, and lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from commands.terminal import note, printable

LONG_S = 120.0  # a stage that has more than that to go says how much, by its pace so far
EVERY_S = 30.0  # seconds between lines where nobody watches: a log stays short and never looks dead

Report = Callable[..., None]  # (what, done, total=1.0)
_open: list[Report] = []  # what this process shows now


@contextmanager
def progress() -> Iterator[Report]:
    """Gives `report(what, done, total=1.0)`. What follows a comma in `what` may change within a stage: "train, KL 0.4".

    What the work says in a line meanwhile (`supernet.progress.say`) is shown as well. Within another, it is that one.
    """
    if _open:
        yield _open[-1]
        return
    shown = _bars() if sys.stderr.isatty() else _lines()
    log, handler = logging.getLogger("bitfleet"), _Notes()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with shown as report:
            _open.append(report)
            yield report
    finally:
        _open.clear()
        log.removeHandler(handler)


class _Notes(logging.Handler):
    """Each line of the work's own, as a note."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


@contextmanager
def _bars() -> Iterator[Report]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

    columns = SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn()  # turn and count by themselves
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: float, total: float = 1.0) -> None:
            stage, shown = what.partition(",")[0], escape(printable(what))
            if stage not in tasks:
                tasks[stage] = bars.add_task(shown, total=total)
            bars.update(tasks[stage], description=shown, completed=done, total=total)

        yield report


@contextmanager
def _lines() -> Iterator[Report]:
    lines, over = Lines(note), threading.Event()

    def beat() -> None:
        while not over.wait(1.0):
            lines.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield lines.report
    finally:
        over.set()
        thread.join()


class Lines:
    """A line when a stage begins, then one every `EVERY_S`, whether or not there is news."""

    def __init__(self, write: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self.write, self.now = write, now
        self.stage, self.line, self.written, self.reported = "", "", 0.0, 0.0
        self.began, self.first, self.share = 0.0, 0.0, 0.0  # when the stage was first heard of, how far it was, and is
        self.lock = threading.Lock()

    def report(self, what: str, done: float, total: float = 1.0) -> None:
        with self.lock:
            stage, self.reported = what.partition(",")[0], self.now()
            self._follow(stage, done / total if total else 1.0)
            self.line = f"{100 * self.share:3.0f} %  {what}{self._to_go()}"
            if stage != self.stage or self.reported - self.written >= EVERY_S:
                self.stage = stage
                self._write(self.line)

    def _follow(self, stage: str, share: float) -> None:
        if stage != self.stage or share < self.share:
            self.began, self.first = self.reported, share
        self.share = share

    def _to_go(self) -> str:
        done = self.share - self.first
        seconds = (self.reported - self.began) * (1 - self.share) / done if done > 0 else 0.0
        return f", about {seconds / 60:.0f} min to go" if seconds > LONG_S else ""

    def beat(self) -> None:
        """Called every second or so: a stage without news for long says that it is still at work."""
        with self.lock:
            if self.stage and self.now() - self.written >= EVERY_S:
                self._write(f"{self.line} ({self.now() - self.reported:.0f} s ago; still at work)")

    def _write(self, line: str) -> None:
        self.written = self.now()
        self.write(line)
