"""What a stage of making a supernet is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from records.reading import read_record
from supernet.checkpoint import SUPERNET
from supernet.index import Index
from supernet.work import Work


class Stage(ABC):
    """Goes from what the stages before left in a folder to what it leaves there, and ends with a mark in one write.

    Stopped anywhere and run again, it leaves the same bits. `clocked` are the names that the clock knows its work by.
    """

    name: ClassVar[str]
    clocked: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[bool] = False
    """Whether all processes of a launcher take part; else the main one alone does."""

    @abstractmethod
    def done(self, out: Path) -> bool:
        """Whether its mark is in the folder. Later stages may take it away: then theirs is there, or that of one
        between."""

    @abstractmethod
    def run(self, work: Work) -> None: ...


def told(out: Path) -> Mapping[str, Any]:
    """What the index in a folder says of how the supernet was made so far; nothing where there is none yet."""
    if not (out / SUPERNET).is_file():
        return {}
    return read_record(out / SUPERNET, Index, "supernet's index", "copy it again or train it again").info
