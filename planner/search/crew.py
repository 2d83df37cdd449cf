"""Several processes at one search that measures: who they are, and what becomes of one that ends."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from records.child import STOPPED

Start = TypeVar("Start")
GONE = 2  # as a flag of `resting`: its process is no more


def fresh_names(count: int) -> tuple[str, ...]:
    """By which workers know their own trials in a study that many share."""
    return tuple(uuid.uuid4().hex for _ in range(count))


@dataclass(frozen=True)
class Crew:
    """The workers of one search as one of them sees it, which is the first or has a `number`; alone unless said.

    They meet in the study alone, but for `resting`: a flag of each, shared by their processes, that it has nothing to
    do. The first knows the processes of the `others`, and says in a line when one ended early.
    """

    number: int = 0
    names: tuple[str, ...] = field(default_factory=lambda: fresh_names(1))
    resting: Any = field(default_factory=lambda: [0])
    others: Sequence[BaseProcess] = ()
    say: Callable[[str], None] | None = None

    @property
    def name(self) -> str:
        return self.names[self.number]

    def part(self, starts: Sequence[Start], number: int | None = None) -> Sequence[Start]:
        """Those of the `starts` that a worker measures."""
        return starts[self.number if number is None else number :: len(self.names)]

    def all_rest(self) -> bool:
        """This one has nothing to do; whether nobody has."""
        self.resting[self.number] = 1
        return all(self.resting)

    def works(self) -> None:
        self.resting[self.number] = 0

    def gone(self) -> Iterator[int]:
        """Numbers of workers that were killed or failed, each once."""
        for number, process in enumerate(self.others, 1):
            if process.exitcode and self.resting[number] != GONE:
                self.resting[number] = GONE
                if self.say is not None:
                    stopped = process.exitcode in (STOPPED, -signal.SIGTERM)
                    why = "was stopped" if stopped else f"ended with code {process.exitcode}"
                    self.say(f"worker {number + 1} {why}; the others go on, and what it was at is open again")
                yield number

    def joined(self) -> None:
        """When the others have ended."""
        for process in self.others:
            process.join()
