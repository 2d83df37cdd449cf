"""What others take of a machine is told apart from what its own timing takes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from commands.names import measure_device
from profiles.others import Spent, share_of_others, spent

SPINS = [sys.executable, "-c", "import time\nend = time.monotonic() + {}\nwhile time.monotonic() < end: pass"]


@pytest.mark.parametrize(
    ("all_s", "own_s", "share"), [(12.0, 12.0, 0.0), (20.0, 5.0, 0.75), (12.0, 13.0, 0.0), (90.0, 0.0, 1.0)]
)
def test_what_is_not_ones_own_is_others(all_s: float, own_s: float, share: float) -> None:
    before, after = Spent(100.0, 3.0, 50.0), Spent(100.0 + all_s, 3.0 + own_s, 60.0)
    assert share_of_others(before, after, 2) == share


def test_no_time_is_no_share() -> None:
    now = spent()
    assert share_of_others(now, now, 2) == 0.0


def test_children_are_ones_own_while_they_work_and_when_they_have_ended() -> None:
    before = spent().own_s
    child = subprocess.Popen([part.format(30) for part in SPINS])
    try:
        while psutil.Process(child.pid).cpu_times().user < 0.3:
            time.sleep(0.05)
        assert round(spent().own_s - before, 2) >= 0.3  # counted in hundredths, whose difference is none
    finally:
        child.kill()
        child.wait()
    assert round(spent().own_s - before, 2) >= 0.3


def test_the_machine_works_at_least_as_much_as_its_own_timing() -> None:
    before, end = spent(), time.process_time() + 0.3
    while time.process_time() < end:
        pass
    after = spent()
    assert after.all_s - before.all_s >= 0.25 and after.own_s - before.own_s >= 0.25  # both are counted in hundredths


@pytest.mark.parametrize(("share", "told"), [(0.63, True), (0.04, False)])
def test_who_profiles_a_busy_machine_is_told(
    share: float, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("planner.runtimes.installed", lambda: SimpleNamespace(found=()))
    monkeypatch.setattr("profiles.others.share_of_others", lambda before, after, processors: share)
    measure_device("cpu", True, tmp_path / "device.json")
    assert ("others took 63% of this machine while it was timed" in capsys.readouterr().err) is told
