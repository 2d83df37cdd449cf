"""Files and folders that appear whole or not at all.

Each is written under a temporary name beside its own and renamed. The name holds the process's id, so that the next
write to the same place removes what a killed process left. A link is written through: what it leads to is replaced,
and the link stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from records.errors import InputError

_LONGEST_NAME = 180  # of a temporary file: names may take 255 bytes, and this one gets a suffix
_ours: set[Path] = set()  # what this process is writing now


class replacing:
    """`with replacing(path) as temporary`: the file appears under its name only when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"a regular file or a free name is needed to write to, {path} is neither; give another")
        self.temporary = _temporary(self.path)

    def __enter__(self) -> Path:
        _remove_left_over(self.path)
        _ours.add(self.temporary)
        # Made here and exclusively, so that nobody's link of this name is followed.
        os.close(os.open(self.temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        return self.temporary

    def __exit__(self, kind: Any, *rest: Any) -> None:
        try:
            if kind is None:
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)
            _ours.discard(self.temporary)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Keys keep their order; numbers that JSON has not are refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place at the end, and goes if anything fails."""
    path = Path(os.path.realpath(out))
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(path)
    folder = _temporary(path)
    _ours.add(folder)
    try:
        folder.mkdir()
        yield folder
        _replace(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _ours.discard(folder)


def _replace(folder: Path, path: Path) -> None:
    """Rename `folder` to `path`; an older `path` is kept until that has happened."""
    if not path.exists():
        os.rename(folder, path)
        return
    old = _temporary(path)
    os.rename(path, old)
    try:
        os.rename(folder, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_mark(path)}{os.getpid()}-{secrets.token_hex(4)}")


def _mark(path: Path) -> str:
    return f".{path.name.encode()[:_LONGEST_NAME].decode(errors='ignore')}.tmp-"


def _remove_left_over(path: Path) -> None:
    """Temporary files and folders for `path` of processes that are gone."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return
    for name in names:
        found = re.fullmatch(re.escape(_mark(path)) + r"(\d+)-[0-9a-f]{8}", name)
        left = path.with_name(name)
        if found and left not in _ours and not _runs_elsewhere(int(found[1])):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _runs_elsewhere(pid: int) -> bool:
    """Whether another process has this id; this one knows what it writes."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
