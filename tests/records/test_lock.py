"""One process at a time, a killed one never, and nothing left of either."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from records.errors import InputError
from records.lock import locked

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from records.lock import locked
with locked(Path(sys.argv[1]), "another training"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", HOLD, path], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_held_place_is_refused_and_that_of_a_killed_process_is_free(kill: signal.Signals, tmp_path: Path) -> None:
    place = tmp_path / "net"
    (tmp_path / "link").symlink_to("net")
    with holder(place) as process:
        for name in (place, tmp_path / "link", tmp_path / "." / "net"):
            with (
                pytest.raises(InputError, match=rf"another training is at work in .* \(process {process.pid}\)"),
                locked(name, "another training"),
            ):
                pass
        process.send_signal(kill)
        process.wait()
        with locked(place, "another training"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_who_waits_is_told_once_and_comes_next(tmp_path: Path) -> None:
    said: list[str] = []
    with holder(tmp_path / "net") as process:

        def waiting(line: str) -> None:
            said.append(line)
            process.kill()

        with locked(tmp_path / "net", "another training", waiting):
            pass
    assert said == [f"another training is at work in {tmp_path / 'net'} (process {process.pid}); waiting for it"]


def count(place: Path, times: int) -> None:
    for _ in range(times):
        with locked(place, "another count", waiting=lambda line: None):
            place.write_text(str(int(place.read_text()) + 1))


def test_several_processes_lose_nothing(tmp_path: Path) -> None:
    """The lock's file goes and comes each time; who waited at one that is gone holds nothing."""
    place = tmp_path / "number"
    place.write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count, args=(place, 20)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert place.read_text() == "60"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


def test_where_nothing_may_be_written_the_lock_is_in_the_cache(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and allowed(path, mode))  # also as root
    with locked(tmp_path / "net", "another training"):
        assert list(tmp_path.iterdir()) == []
        assert len(list((own_cache / "locks").iterdir())) == 1
        with pytest.raises(InputError, match="at work"), locked(tmp_path / "net", "another training"):
            pass
    assert list((own_cache / "locks").iterdir()) == []
