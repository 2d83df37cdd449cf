"""Child processes that never outlive who started them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

from records.signals import unbroken


def run_child(command: Sequence[str], input: Any = None, timeout: float | None = None, **options: Any) -> Any:
    """As `subprocess.run` with its output captured; a signal that comes while the child is being started waits until
    it is known, so that it can be ended. subprocess.TimeoutExpired as there."""
    stdin = subprocess.PIPE if input is not None else None
    process: subprocess.Popen[Any] | None = None
    try:
        with unbroken():
            process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        stdout, stderr = process.communicate(input, timeout)
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
