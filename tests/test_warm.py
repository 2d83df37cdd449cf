"""Processes forked from one that has imported the libraries end when their time is over, with all that they began."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.warm import run

SCRIPT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
open(sys.argv[1], "w").write(f"{child.pid}")
print("begun", flush=True)
time.sleep(120)
"""


def test_a_process_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    script, number = tmp_path / "slow.py", tmp_path / "pid"
    script.write_text(SCRIPT)
    run([sys.executable, "-m", "this"])  # the libraries are there
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        run([sys.executable, str(script), str(number)], timeout=5)
    assert raised.value.stdout == "begun\n"
    child = int(number.read_text())
    for _ in range(50):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    raise AssertionError("the child lives on")
