"""A child ends with who started it: whatever raises, whenever a signal comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from records.child import run_child
from records.errors import Terminated
from records.signals import stoppable

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_output_and_exit_status_come_back() -> None:
    code = "import sys; print(sys.stdin.read()[::-1]); print('e', file=sys.stderr); sys.exit(3)"
    done = run_child([sys.executable, "-c", code], "abc", 60, text=True)
    assert (done.stdout.strip(), done.stderr.strip(), done.returncode) == ("cba", "e", 3)


def test_a_child_that_takes_too_long_is_ended() -> None:
    before = len(children())
    with pytest.raises(subprocess.TimeoutExpired):
        run_child(SLEEPS, timeout=0.2)
    assert len(children()) == before


def test_a_signal_while_the_child_is_being_started_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it comes from the moment the child is there until it has a name here."""
    before, started = len(children()), subprocess.Popen

    def interrupted(*given: object, **options: object) -> object:
        process = started(*given, **options)  # type: ignore[call-overload]
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(Terminated), stoppable():
        run_child(SLEEPS)
    assert len(children()) == before


def test_a_signal_while_the_child_works_leaves_none() -> None:
    before = len(children())
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stoppable():
        run_child(SLEEPS)
    assert len(children()) == before and time.monotonic() - began < 30
