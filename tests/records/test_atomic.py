"""What is written appears whole or not at all, and what a killed process left goes with the next write."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from records.atomic import check_output, new_folder, replacing, write_text
from records.errors import InputError

DEAD = 2**22 + 1  # no process has this id: above the kernel's largest


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(RuntimeError, match="stop"), replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert (tmp_path / "a").read_text() == "old"
    assert _names(tmp_path) == ["a"]


def test_a_folder_that_fails_keeps_the_old_one_and_leaves_nothing(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a") as folder:
        (folder / "old").touch()
    with pytest.raises(RuntimeError, match="stop"), new_folder(tmp_path / "a") as folder:
        (folder / "new").touch()
        raise RuntimeError("stop")
    assert _names(tmp_path) == ["a"]
    assert _names(tmp_path / "a") == ["old"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        (tmp_path / f".a.tmp-{DEAD}-01234567").touch()
        (tmp_path / f".a.tmp-{os.getpid()}-01234567").mkdir()
        (tmp_path / f".a.tmp-{living.pid}-01234567").touch()
        (tmp_path / f".b.tmp-{DEAD}-01234567").touch()
        write_text(tmp_path / "a", "new")
        assert _names(tmp_path) == sorted([f".a.tmp-{living.pid}-01234567", f".b.tmp-{DEAD}-01234567", "a"])
        living.communicate(b"\n")


def test_links_are_written_through_for_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "file-link").symlink_to("file")
    write_text(tmp_path / "file-link", "text")
    (tmp_path / "folder-link").symlink_to("folder")
    for name in ("first", "second"):
        with new_folder(tmp_path / "folder-link") as folder:
            (folder / name).touch()
    assert (tmp_path / "file-link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"
    assert (tmp_path / "folder-link").is_symlink()
    assert _names(tmp_path / "folder") == ["second"]


def test_special_files_are_refused_and_stay(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular file"):
        write_text(tmp_path / "pipe", "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_files_have_the_rights_that_the_person_asks_for(tmp_path: Path) -> None:
    """Also where a library puts a file of its own in place, as safetensors does."""

    def private(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.touch(0o600)

    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "text")
        with replacing(tmp_path / "b") as temporary:
            private(temporary)
        with new_folder(tmp_path / "c") as folder:
            private(folder / "d")
    finally:
        os.umask(before)
    for name in ("a", "b", "c/d"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_names_as_long_as_the_system_takes_can_be_written(tmp_path: Path) -> None:
    name = "ä" * 127
    write_text(tmp_path / name, "text")
    assert _names(tmp_path) == [name]


def test_what_can_be_written_is_accepted_and_nothing_is_left_by_the_check(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("free")
    before = _names(tmp_path)
    for name in ("file", "new", "dangling", "ä" * 127):
        check_output(tmp_path / name)
    for name in ("folder", "new", "dangling", "new/within"):
        check_output(tmp_path / name, folder=True)
    assert _names(tmp_path) == before


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pipe", "it is neither"),
        ("pipe-link", "it is neither"),
        ("loop", "Too many levels"),
        ("x" * 256, "File name too long"),
        ("file/within", "Not a directory"),
        (".", "neither|current folder"),
        ("..", "neither|current folder"),
        ("/", "neither|mount point"),
        ("/proc", "neither|mount point"),
        ("/dev/null", "it is neither"),
        ("/proc/bitfleet", "cannot be written into"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str, folder: bool
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe-link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    before = _names(tmp_path)
    with pytest.raises(InputError, match=told) as raised:
        check_output(Path(name), folder=folder)
    assert "; give another --out" in str(raised.value)
    assert _names(tmp_path) == before


def test_each_kind_needs_its_own_and_a_file_the_folder_that_it_goes_into(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, folder, told in (("file", True, "a folder"), ("", False, "a regular file"), ("no/x", False, "no folder")):
        with pytest.raises(InputError, match=told):
            check_output(tmp_path / name, folder=folder)


@pytest.mark.parametrize("swaps", [True, False])
def test_an_older_folder_is_replaced_with_the_system_s_swap_and_without(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:
        monkeypatch.setattr("records.atomic._exchange", lambda one, other: False)
    for name in ("first", "second"):
        with new_folder(tmp_path / "a") as folder:
            (folder / name).touch()
    assert _names(tmp_path) == ["a"]
    assert _names(tmp_path / "a") == ["second"]
