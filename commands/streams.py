"""stdout and stderr that never stop the work.

Notes on stderr are best effort: a disk that is full, a terminal that is gone or a descriptor that is closed swallows
them. On stdout the first failure is kept, so that the command goes on to its end and what it found decides; then a
reader that left is no failure, and a full disk is one of the system.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO


class Stream(io.RawIOBase):
    """A descriptor whose writes never raise; `failure` is the first error."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self.failure is not None:
            return size
        try:
            return os.write(self.descriptor, data)
        except OSError as error:
            self.failure = error
            return size

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)


def secure() -> None:
    """Put such streams behind sys.stdout and sys.stderr, unless somebody (a test) put something else there.

    A descriptor that is closed is first opened to nowhere: the next file to be opened would get its number, and what
    libraries print.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(1, sys.stdout, "replace")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(2, sys.stderr, "backslashreplace")


def _text(descriptor: int, old: TextIO | None, errors: str) -> TextIO:
    buffer = io.BufferedWriter(Stream(descriptor))
    lines = descriptor == 2 or os.isatty(descriptor)
    return io.TextIOWrapper(buffer, old.encoding if old else "utf-8", errors, line_buffering=lines)


def reader_left() -> bool:
    """Whether nobody reads stdout any more."""
    failure = _failure()
    return failure is not None and failure.errno == errno.EPIPE


def lost() -> OSError | None:
    """Why data on stdout was lost, in whole or in part, to somebody who wanted it."""
    sys.stdout.flush()
    return None if reader_left() else _failure()


def _failure() -> OSError | None:
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, Stream) else None
