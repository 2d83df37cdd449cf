"""Where studies are kept: journals that a full disk, a kill or another hand damaged, and addresses of no storage."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import optuna
import pytest

from commands.studies import journal, named
from records.errors import InputError

LINES = 12


def _study(path: Path) -> bytes:
    """A journal of a study with trials, as bytes."""
    study = optuna.create_study(storage=journal(path), study_name="a")
    for number in range(3):
        study.add_trial(optuna.trial.create_trial(value=float(number)))
        study.set_user_attr("x" * 10, {"unit": {"int4g64": float(number)}})
    return path.read_bytes()


def _trials(path: Path) -> int:
    return len(optuna.load_study(storage=journal(path), study_name="a").trials)


def test_a_journal_is_cut_back_to_its_last_whole_line_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "searches.journal"
    whole = _study(path)
    lines = whole.splitlines(keepends=True)
    for cut in (b"", b"{", lines[-1][:-1], b"x" * 200_000):
        path.write_bytes(whole + cut)
        optuna.load_study(storage=journal(path), study_name="a").add_trial(optuna.trial.create_trial(value=1.0))
        assert path.read_bytes().startswith(whole)
        assert _trials(path) == 4
    path.write_bytes(b'{"op_code":0')
    journal(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"[]",
        b"5",
        b'{"op_code": 99, "worker_id": "x"}',
        b'{"op_code": 4',
        bytes(range(128, 168)),
    ],
)
def test_a_damaged_journal_is_one_line_that_says_to_remove_it(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "searches.journal"
    lines = _study(path).splitlines(keepends=True)
    for at in (0, 2, len(lines)):
        path.write_bytes(b"".join([*lines[:at], line, b"\n", *lines[at:]]))
        before = path.read_bytes()
        with pytest.raises(InputError, match="is damaged .*remove it and the search begins anew"):
            journal(path)
        assert path.read_bytes() == before


def test_a_lock_that_a_killed_process_left_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net").mkdir()
    made = journal(Path("net/searches.journal"))
    assert made._backend._lock.acquire()
    link = Path("net/searches.journal.lock")
    assert link.is_symlink() and link.stat().st_mtime  # of what it leads to: by this Optuna sees that it is stale
    made._backend._lock.release()


def test_an_address_of_no_storage_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for address in (
        "nowhere",
        "",
        f"sqlite:///{tmp_path}",
        f"sqlite:///{tmp_path}/none/x.db",
        f"sqlite:///{tmp_path}/text",
    ):
        with pytest.raises(InputError, match="--storage is an address that Optuna can open") as raised:
            named(address)
        assert "\n" not in str(raised.value)
    with pytest.raises(ImportError):
        named("mysql://user:secret@127.0.0.1/x")
    good = f"sqlite:///{tmp_path}/studies.db"
    optuna.create_study(storage=named(good), study_name="a")
    assert sqlite3.connect(tmp_path / "studies.db").execute("select study_name from studies").fetchall() == [("a",)]
