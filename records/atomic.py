"""Files and folders that appear whole or not at all.

Each is written under a temporary name beside its own and renamed. The name holds the process's id, so that the next
write to the same place removes what a killed process left. A link is written through: what it leads to is replaced,
and the link stays.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from records.errors import InputError, MissingError, SystemFailure
from records.signals import unbroken

_LONGEST_NAME = 180  # of a temporary file: names may take 255 bytes, and this one gets a suffix
_ours: set[Path] = set()  # what this process is writing now


class replacing:
    """`with replacing(path) as temporary`: the file appears under its name only when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"{path} must be a regular file or a free name, it is neither; give another")
        self.temporary = _temporary(self.path)

    def __enter__(self) -> Path:
        _remove_left_over(self.path)
        _ours.add(self.temporary)
        # Made here and exclusively, so that nobody's link of this name is followed.
        os.close(os.open(self.temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        self.mode = self.temporary.stat().st_mode
        return self.temporary

    def __exit__(self, kind: Any, *rest: Any) -> None:
        try:
            if kind is None:
                _allow(self.temporary, self.mode)
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)
            _ours.discard(self.temporary)


def _allow(file: Path, mode: int) -> None:
    """Let others read what they may: safetensors puts a file of its own in place, for its owner alone."""
    with suppress(OSError):  # some file systems have no rights
        file.chmod(mode)


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
        for file in folder.iterdir():
            if file.is_file():
                _allow(file, folder.stat().st_mode & 0o666)
        _replace(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _ours.discard(folder)


def _replace(folder: Path, path: Path) -> None:
    """Give `folder` the name `path`. An older one there takes the name of `folder` and goes with it."""
    if not path.exists():
        os.rename(folder, path)
    elif not _exchange(folder, path):
        old = _temporary(path)
        with unbroken():
            os.rename(path, old)
            try:
                os.rename(folder, path)
            except BaseException:
                os.rename(old, path)
                raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one go, where the system can: Linux, most of its file systems."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <linux/fs.h>
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0)


def check_output(out: Path, *, folder: bool = False, next_step: str = "give another --out") -> None:
    """InputError before the work and not after it, unless a file, or a `folder`, can appear at `out`.

    A file needs the folder that it goes into, a folder makes those above it. What an older one holds is not looked at.
    """
    path = Path(os.path.realpath(out))
    wanted = "a folder" if folder else "a regular file"
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
            raise InputError(f"{out} must be {wanted} or a free name, it is neither; {next_step}")
    except FileNotFoundError:
        pass
    except OSError as error:  # a name too long, a link to itself, a file where a folder should be
        raise InputError(f"{out} cannot be {wanted} ({error.strerror}); {next_step}") from None
    if _is_mount(path):
        raise InputError(f"{out} is a mount point and cannot be replaced; {next_step}")
    if folder and Path.cwd().is_relative_to(path):
        raise InputError(f"{out} holds the current folder and cannot be replaced; {next_step}")
    parent = path.parent
    while folder and not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise MissingError(f"no folder {parent} to write {path.name} into; make it, or {next_step}")
    try:  # rights say nothing to root, nor on a file system that may only be read
        with tempfile.TemporaryFile(dir=parent, prefix=".bitfleet-"):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise SystemFailure(f"{parent} cannot be written into ({error.strerror}); {next_step}") from None
        raise InputError(f"{parent} cannot be written into ({error.strerror}); {next_step}") from None


def _is_mount(path: Path) -> bool:
    """Whether something is mounted here, a single file too, which nothing can be renamed over."""
    if os.path.ismount(path):
        return True
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    escaped = re.sub(r"[ \t\n\\]", lambda found: f"\\{ord(found[0]):03o}", str(path))
    return any(line.split(" ")[4] == escaped for line in mounts)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_mark(path)}{os.getpid()}-{secrets.token_hex(4)}")


def is_temporary(name: str) -> bool:
    """Whether this is a name under which something is written before it has its own."""
    return re.fullmatch(r"\..+\.tmp-\d+-[0-9a-f]{8}", name) is not None


def _mark(path: Path) -> str:
    return f".{path.name.encode()[:_LONGEST_NAME].decode(errors='ignore')}.tmp-"


def remove_left_over(folder: Path) -> None:
    """What processes that are gone had half written in `folder`, whatever its name was to be."""
    _remove_marked(folder, r"\..+\.tmp-")


def _remove_left_over(path: Path) -> None:
    """Temporary files and folders for `path` of processes that are gone."""
    _remove_marked(path.parent, re.escape(_mark(path)))


def _remove_marked(folder: Path, mark: str) -> None:
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        found = re.fullmatch(mark + r"(\d+)-[0-9a-f]{8}", name)
        left = folder / name
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
