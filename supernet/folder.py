"""A folder while a supernet is made in it: what a start or a run that was stopped left there, and whose it is.

`state.json` is written before the first file of a start and goes with the index that names them all with their hashes.
So a folder that has it and no index holds a start, which goes on from what is in `PREPARING`; all else in it is made
again. All of this is done by who holds the lock.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from records.atomic import is_temporary, write_json
from records.errors import InputError
from records.reading import read_json
from supernet.checkpoint import CHANGES, FLOATS, LOAD, MODEL, REFERENCE, STATE, UNFINISHED, SupernetFiles

KIND = "bitfleet start"
PREPARING = "preparing"  # the folder where a start waits until its codes are there
PREPARED = "prepared.json"  # in it, once all is there that codes are made from


def begin(out: Path, info: dict[str, Any]) -> None:
    """Mark `out`, new or empty, as one that a supernet is being started in."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / STATE, {"kind": KIND, **info})


def refuse_used(out: Path) -> None:
    """InputError unless `out` is free or empty, or holds no more than a start that was stopped: that is removed."""
    if out.is_dir():
        remove_temporaries(out)
        if _begun(out):
            remove_start(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is in use and holds no supernet; give a new or an empty folder as --out")


def begun_start(out: Path) -> dict[str, Any] | None:
    """What a start said of itself that was stopped and can go on."""
    return read_json(out / STATE, "state", "remove it") if (out / PREPARING).is_dir() and _begun(out) else None


def remove_begun_start(out: Path) -> None:
    """Remove what waited while a start was made; by then it is whole."""
    shutil.rmtree(out / PREPARING, ignore_errors=True)


def _begun(out: Path) -> bool:
    try:
        return read_json(out / STATE, "state", "remove it").get("kind") == KIND
    except InputError:
        return False


def remove_start(out: Path) -> None:
    """Remove what a start left that was stopped before its index, so that none of it is taken for a later one's."""
    shutil.rmtree(out / MODEL, ignore_errors=True)
    for name in (*CHANGES, FLOATS, REFERENCE, LOAD, *UNFINISHED):  # the state is the last of them
        (out / name).unlink(missing_ok=True)


def remove_unfinished(files: SupernetFiles) -> None:
    """Remove what training alone needs."""
    remove_temporaries(files.path)
    remove_begun_start(files.path)
    for name in UNFINISHED:
        if name not in files.hashes:
            (files.path / name).unlink(missing_ok=True)


def remove_temporaries(out: Path) -> None:
    for path in out.iterdir():
        if is_temporary(path.name):
            path.unlink(missing_ok=True)
