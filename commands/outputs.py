"""Where a command may write a file: a mistyped name costs nobody a supernet, a package or a text."""

from __future__ import annotations

import os
from pathlib import Path

from records.atomic import check_output
from records.errors import InputError

PLAN, RECEIPT = ('{"kind": "bitfleet plan"', '{"kind": "bitfleet receipt"')
PROFILE, PAGE = '{"name": ', "<!doctype html>"
"""How what is written begins, whatever the spaces between."""


def check_file(out: Path, begins: str, option: str = "--out") -> None:
    """InputError before the work unless a file that begins so may be written to `out`: a free name, an empty file, or
    an older one that begins so too; and not within a package, which holds the files of its manifest alone."""
    from planner.package import MANIFEST

    check_output(out, next_step=f"give another {option}")
    path = Path(os.path.realpath(out))
    if (path.parent / MANIFEST).is_file():
        raise InputError(f"{out} would be a file of a package, which has those of its manifest; give another {option}")
    if path.exists() and not _begins(path, begins):
        raise InputError(f"{out} holds something else, which would be lost; give another {option}, or remove it")


def check_apart(first: Path, second: Path, options: tuple[str, str]) -> None:
    """InputError where two files that a command writes would be one."""
    if os.path.realpath(first) == os.path.realpath(second):
        raise InputError(f"{options[0]} and {options[1]} must be two files, got {first} for both")


def _begins(path: Path, begins: str) -> bool:
    """Whether a file is empty or begins so. One that may not be read is something else."""
    try:
        with path.open("rb") as file:
            head = file.read(200)
    except OSError:
        return False
    return not head or b"".join(head.split()).startswith(b"".join(begins.encode().split()))
