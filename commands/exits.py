"""Exit codes, and the one line of an error: what the person can mend, what the system did, and what is a bug."""

from __future__ import annotations

import errno

import click

from records.errors import BudgetError, InputError, SystemFailure, Terminated
from records.installed import TRAINING, needs_training

OK, BROKEN, BAD_INPUT, OVER_BUDGET, NOT_INSTALLED, SYSTEM, BUG, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 5, 70, 130, 143
EPILOG = """\b
Exit codes:
  0    ok; also where whoever reads the output has left
  1    a limit or a promise is broken or was not checked (verify), a bit-width ends worse than it began (train), or a
       check failed (doctor)
  2    bad input: an unknown option, a missing or corrupt file, a value out of range
  3    a budget cannot be met; the message names the smallest that can
  4    something is not installed; the message says what to install
  5    the system failed: disk full, out of memory, I/O
  70   a bug in bitfleet
  130  interrupted (SIGINT); what was finished is kept
  143  terminated (SIGTERM, SIGHUP); what was finished is kept
"""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NAMED_WRONGLY = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
# What libraries say when memory runs out, which are no MemoryError: torch, its CPU allocator, ONNX Runtime, C++.
NO_MEMORY = (
    "OutOfMemoryError",
    "can't allocate memory",
    "DefaultCPUAllocator",
    "Failed to allocate memory",
    "bad_alloc",
)


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the one line of an error."""
    text = " ".join(str(error).split())
    if isinstance(error, click.ClickException):
        return BAD_INPUT, _usage(error)
    if isinstance(error, Terminated):
        return TERMINATED, "terminated; nothing half-written is left behind"
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED, "interrupted; nothing half-written is left behind"
    if isinstance(error, InputError):
        return BAD_INPUT, text
    if isinstance(error, BudgetError):
        return OVER_BUDGET, text
    if isinstance(error, ImportError):
        missing = isinstance(error, ModuleNotFoundError) and text.startswith("No module named")
        if missing and str(error.name).partition(".")[0] in TRAINING:
            return NOT_INSTALLED, str(needs_training(str(error.name)))
        return NOT_INSTALLED, f"{text}; run: bitfleet doctor" if missing else text
    if isinstance(error, OSError):
        return _system(error, text)
    if isinstance(error, MemoryError) or any(said in f"{type(error).__name__}: {text}" for said in NO_MEMORY):
        return SYSTEM, "out of memory; close programs or use a smaller model"
    if type(error).__name__ == "SafetensorError" and "I/O error" in text:  # how a full disk reaches a tensor file
        return SYSTEM, f"{text}; free some space or choose another --out"
    return BUG, f"{type(error).__name__}: {text}; this is a bug in bitfleet, bitfleet --debug shows where"


def _usage(error: click.ClickException) -> str:
    line = " ".join(error.format_message().split())
    if not isinstance(error, click.UsageError):
        return line
    command = error.ctx.command_path if error.ctx else "bitfleet"
    hint = ""
    if isinstance(error, click.NoSuchOption) and error.ctx and error.ctx.info_name == "run":
        hint = ' A prompt that begins with "-" goes after "--": bitfleet run DIR -- PROMPT.'
    return f"{line}{hint} See: {command} --help"


def _system(error: OSError, text: str) -> tuple[int, str]:
    if isinstance(error, SystemFailure):
        return SYSTEM, text
    if "No usable temporary directory" in text:  # how Python says that all of them are full; its errno is ENOENT
        return SYSTEM, f"{text}; free some space, or set TMPDIR to a folder that has some"
    if error.errno is not None and error.filename:
        text = f"{error.strerror}: {error.filename}"
    if isinstance(error, NAMED_WRONGLY) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return BAD_INPUT, text
    return SYSTEM, f"{text}; free some space or choose another --out" if error.errno in FULL else text
