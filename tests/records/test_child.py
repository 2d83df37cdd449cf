"""A child ends with who started it: whatever raises, whenever a signal comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from records.child import run_child
from records.errors import Terminated
from records.signals import stoppable

ROOT = Path(__file__).resolve().parents[2]
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
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stoppable():
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        run_child(SLEEPS)
    assert len(children()) == before and time.monotonic() - began < 30


POOL = "workers(2) as pool", "jobs = [pool.submit(work, f'half{n}') for n in range(2)]", "jobs[0].result()"
BESIDE = "beside([(work, f'half{n}') for n in range(2)])", "pass", "pass"


DEAF = "heeds = signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, heeds))"


def pools(
    body: str, tmp_path: Path, started: tuple[str, str, str] = POOL, first: str = "pass"
) -> subprocess.Popen[str]:
    """A process of a session of its own that has two others, and sleeps in both, which do `first` before."""
    script = tmp_path / "pools.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "from records.child import beside, workers\n"
        "from records.signals import stoppable\n"
        "def work(name):\n"
        "    with stoppable():\n"
        f"        {first}\n"
        "        try:\n"
        "            pathlib.Path(name).write_text('half')\n"
        "            time.sleep(60)\n"
        "        finally:\n"
        "            pathlib.Path(name).unlink(missing_ok=True)\n"
        "def main():\n"
        f"    with {started[0]}:\n"
        f"        {started[1]}\n"
        "        while len(list(pathlib.Path().glob('half*'))) < 2:\n"
        "            time.sleep(0.01)\n"
        "        print('ready', flush=True)\n"
        f"        {body}\n"
        f"        {started[2]}\n"
        "if __name__ == '__main__':\n"
        "    with stoppable():\n"
        "        main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, script.name], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def gone(session: int, within_s: float = 20) -> bool:
    """Whether nothing of a session runs any more, soon."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        there = [p for p in psutil.process_iter(["status"]) if p.info["status"] != psutil.STATUS_ZOMBIE]
        if not any(_session(process.pid) == session for process in there):
            return True
        time.sleep(0.05)
    return False


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.parametrize("started", [POOL, BESIDE], ids=["pool", "beside"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda n: str(n.name))
def test_a_pool_ends_with_its_process_and_undoes_what_was_half_done(
    tmp_path: Path, number: signal.Signals, started: tuple[str, str, str]
) -> None:
    process = pools("pass", tmp_path, started)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    assert gone(process.pid)
    _, said = process.communicate(timeout=10)
    assert process.returncode != 0 and not list(tmp_path.glob("half*"))
    assert said.count("Traceback") <= (number != signal.SIGKILL), said  # its own alone


def test_an_error_in_the_block_ends_what_a_pool_does(tmp_path: Path) -> None:
    process = pools("raise ValueError('enough')", tmp_path)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and said.rstrip().endswith("ValueError: enough")
    assert gone(process.pid) and not list(tmp_path.glob("half*"))


@pytest.mark.parametrize("started", [POOL, BESIDE], ids=["pool", "beside"])
def test_a_child_that_misses_the_first_signal_is_asked_again(tmp_path: Path, started: tuple[str, str, str]) -> None:
    """As one that comes just before a call that sleeps is missed."""
    process = pools("raise ValueError('enough')", tmp_path, started, DEAF)
    process.communicate(timeout=30)
    assert gone(process.pid) and not list(tmp_path.glob("half*"))
