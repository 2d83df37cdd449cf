"""Where the study of a search by measuring is kept, opened before any work: what is wrong there is said first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from records.errors import InputError

JOURNAL = "searches.journal"


def journal(path: Path) -> Any:
    """The journal at `path`, made where there is none, as one of Optuna's storages; InputError where it is damaged.

    A last line without an end is what a full disk leaves. It is cut off: else what is written next would be no line.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    name = str(path.resolve())  # the lock is a link to this name: where a link leads nowhere it is waited for forever
    lock = JournalFileSymlinkLock(name)
    backend = JournalFileBackend(name, lock)
    try:
        lock.acquire()
        try:
            json.loads(_last_line(path) or "{}")  # which Optuna reads only when another follows
        finally:
            lock.release()
        return JournalStorage(backend)
    except OSError:
        raise
    except Exception as error:  # Optuna trusts what it wrote: any error may come of a line that is none of its
        why = " ".join(f"{type(error).__name__} {error}".split())
        raise InputError(
            f"{path} is damaged ({why:.120}); remove it and the search begins anew, or name a --storage"
        ) from None


def _last_line(path: Path) -> bytes:
    """The last whole line; what stands behind it is cut off."""
    with path.open("r+b") as file:
        end, last = 0, b""
        for line in file:
            if line.endswith(b"\n"):
                end, last = end + len(line), line
        file.truncate(end)
    return last


def named(address: str) -> Any:
    """The storage at an address of Optuna's; InputError where there is none to open, ImportError where its database
    needs a library. The address may hold a password, so no error repeats it."""
    from optuna.storages import get_storage

    try:
        return get_storage(address)
    except ImportError:
        raise
    except Exception as error:  # a database's errors are those of its own library
        why = str(error).partition("\n")[0]
        raise InputError(
            f"--storage is an address that Optuna can open, such as sqlite:///studies.db ({why:.120})"
        ) from None
