"""How long a program takes to start, and what that is worth on this processor."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STANDARD = "asyncio, concurrent.futures.process, email.message, http.client, sqlite3, unittest.mock, xml.dom.minidom"


def starting_s(*words: str, starts: int = 5) -> Sequence[float]:
    """Seconds of a core that a Python with these words takes, each of so many times."""
    seconds = []
    for _ in range(starts):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return seconds


@cache
def standard_s() -> float:
    """To import a part of the standard library: .08 s on the processors that limits of seconds were set on."""
    return min(starting_s("-c", f"import {STANDARD}"))
