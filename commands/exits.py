"""Exit codes, and the one line of an error."""

from __future__ import annotations

import errno

import click

from records.errors import BudgetError

OK, BROKEN, BAD_INPUT, OVER_BUDGET, NOT_INSTALLED, SYSTEM, BUG, INTERRUPTED = 0, 1, 2, 3, 4, 5, 70, 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EPILOG = """\b
Exit codes:
  0    ok
  1    a promise is broken (verify), or a check failed (doctor)
  2    bad input: an unknown option, a missing or corrupt file, a value out of range
  3    a budget cannot be met; the message names the smallest that can
  4    something is not installed; the message says what to install
  5    the system failed: disk full, out of memory, I/O
  70   a bug in bitfleet
  130  interrupted; what was finished is kept
"""


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the one line of an error."""
    text = " ".join(str(error).split())
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "bitfleet"
        return BAD_INPUT, f"{' '.join(error.format_message().split())} See: {command} --help"
    if isinstance(error, click.ClickException):
        return BAD_INPUT, error.format_message()
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED, "interrupted; nothing half-written is left behind"
    if isinstance(error, ImportError):
        missing = isinstance(error, ModuleNotFoundError) and text.startswith("No module named")
        return NOT_INSTALLED, f"{text}; run: bitfleet doctor" if missing else text
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        text = f"{error.strerror}: {error.filename}"
    if isinstance(error, (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)):
        return BAD_INPUT, text
    if isinstance(error, OSError):
        return SYSTEM, f"{text}; free some space or choose another --out" if error.errno in FULL else text
    if (
        type(error).__name__ == "SafetensorError" and "I/O error" in text
    ):  # how writing a tensor file reports a full disk
        return SYSTEM, f"{text}; free some space or choose another --out"
    if isinstance(error, MemoryError):
        return SYSTEM, "out of memory; close programs or use a smaller model"
    if isinstance(error, ValueError):
        return BAD_INPUT, text
    if isinstance(error, BudgetError):
        return OVER_BUDGET, text
    return BUG, f"{type(error).__name__}: {text}; this is a bug in bitfleet, bitfleet --debug shows where"
