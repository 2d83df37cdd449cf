"""One process at a time in a folder or a file, by locks of the operating system: one whose process is gone is free.

A lock is a file beside what it guards, with the process's id in it, and goes when it is released. Where nothing may be
written there, it lies in the user's cache, under the hash of the path: whoever can only read guards what it writes
elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from records.cache import cache_dir
from records.errors import InputError, SystemFailure

LOOK_AGAIN_S = 0.2


@contextmanager
def locked(path: Path, what: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold `path`, which need not exist. `what` says who would hold it: "another training".

    Where it is held, InputError in one line; with `waiting` that line is told to it and the lock is waited for.
    """
    from filelock import FileLock, Timeout

    place = Path(os.path.realpath(path))
    file = _lock_file(place)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        line = f"{what} is at work in {path}{_process(file)}"
        if waiting is None:
            raise InputError(f"{line}; wait for it, or give another place") from None
        waiting(f"{line}; waiting for it")
        lock.acquire(poll_interval=LOOK_AGAIN_S)
    try:
        file.write_text(f"{os.getpid()}\n")
        yield
    finally:
        with contextlib.suppress(OSError):  # whoever waits notices that it is gone, and makes one of its own
            file.unlink()
        lock.release()


def _lock_file(place: Path) -> Path:
    hidden = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    beside = place.parent / (f".{place.name}.lock" if len(os.fsencode(place.name)) < 200 else f".{hidden}.lock")
    if place.parent.is_dir() and os.access(place.parent, os.W_OK | os.X_OK):
        return beside
    folder = cache_dir() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemFailure(
            f"{place} can be locked neither there nor in {folder} ({error.strerror}); set BITFLEET_CACHE to a folder "
            "you may write"
        ) from None
    return folder / f"{hidden}.lock"


def _process(file: Path) -> str:
    try:
        return f" (process {int(file.read_text())})"
    except (OSError, ValueError):
        return ""
