"""docs/scale.md says what benchmarks/scale.py prints."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.warm import run

ROOT = Path(__file__).parents[1]


def test_every_number_of_the_page_comes_out_of_the_script() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run(command, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    printed = [line for line in done.stdout.splitlines() if line.startswith("|")]
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in page if line.startswith("|")] == printed
