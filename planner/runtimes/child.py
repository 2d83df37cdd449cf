"""Start a runtime's worker in a fresh process on which nothing outside acts, and read what it found."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner.runtimes.alone import OK, SYSTEM
from records.child import child_lines, run_child
from records.errors import InputError, SystemFailure

PATIENCE_S, TOKEN_S = 600.0, 2.0  # for what computes: loading and whatever is quick, and each token that is computed


# What a library says of it before it aborts.
OUT_OF_MEMORY = (
    "bad_alloc",
    "failed to allocate",
    "unable to allocate",
    "mem_buffer != NULL",
    "Cannot allocate memory",
)


class Endless(SystemFailure):
    """What a package computes did not end in its time: the machine is far too slow, or the graph is far too much."""


@dataclass(frozen=True)
class Measurement:
    """What one process that loaded a package and generated took. `tpot_ms` is NaN where a second token has no room."""

    loaded_bytes: int
    peak_bytes: int
    ttft_ms: float
    tpot_ms: float


def fastest(processes: Sequence[Measurement]) -> Measurement:
    """The last of several that did the same, with the least times of all and the largest peak: whatever else a machine
    does only ever adds to times."""
    times = {name: min(getattr(one, name) for one in processes) for name in ("ttft_ms", "tpot_ms")}
    return replace(processes[-1], peak_bytes=max(one.peak_bytes for one in processes), **times)


def patience(tokens: int) -> float:
    """Seconds after which a process that computes so many tokens is taken to hang: many more than one takes."""
    return PATIENCE_S + TOKEN_S * tokens


@dataclass(frozen=True)
class Worker:
    """A `script` that runs alone: it imports the standard library and `libraries`, from where they are installed.

    Python's isolated mode ignores the current folder and every variable of its own, and the script starts in an empty
    folder. It is given the name of a file with what is asked of it: a task, a package's folder, the task's arguments,
    and `result`, where what the task returns is written as JSON. `loader` is what errors call it.
    """

    script: Path
    libraries: tuple[str, ...]
    loader: str

    def ask(self, task: str, folder: Path, scratch: Path, seconds: float, **arguments: Any) -> Any:
        """What the `task` returns for the package in `folder`; files of the request lie in the empty `scratch`.

        InputError where the package does not load, SystemFailure where the system has no room for it, and where it
        takes more than `seconds` (Endless).
        """
        command, result = self._request(task, folder, scratch, arguments)
        try:
            done = run_child(command, timeout=seconds, **self._options(scratch))
        except subprocess.TimeoutExpired:
            raise Endless(f"what {folder} computes must end, it did not within {seconds:.0f} s") from None
        if done.returncode != OK:
            raise self._failure(folder, done.returncode, done.stderr)
        return json.loads(result.read_text(encoding="utf-8"))

    def lines(self, task: str, folder: Path, scratch: Path, **arguments: Any) -> Iterator[str]:
        """Each line that the `task` prints, as it comes; errors as above. The process ends with whoever reads."""
        command, _ = self._request(task, folder, scratch, arguments)
        with open(scratch / "stderr", "w+", encoding="utf-8", errors="replace") as said:
            code = yield from child_lines(command, stderr=said, **self._options(scratch))
            said.seek(0)
            if code != OK:
                raise self._failure(folder, code, said.read())

    def _request(self, task: str, folder: Path, scratch: Path, arguments: Any) -> tuple[list[str], Path]:
        request, result = scratch / "request.json", scratch / "result.json"
        wanted = {"task": task, "folder": str(folder.resolve()), "arguments": arguments, "result": str(result)}
        request.write_text(json.dumps({**wanted, "libraries": installed(self.libraries)}), encoding="utf-8")
        return [sys.executable, "-I", str(self.script.resolve()), str(request)], result

    def _options(self, scratch: Path) -> dict[str, Any]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return {"env": environment, "cwd": scratch, "text": True, "errors": "replace"}

    def _failure(self, folder: Path, code: int, stderr: str) -> Exception:
        said = (stderr.strip().splitlines() or ["no message"])[-1]
        if code == SYSTEM or (code == -signal.SIGABRT and any(words in stderr for words in OUT_OF_MEMORY)):
            return SystemFailure(
                f"the system has no room to load {folder}: {said}; free memory or space in {tempfile.gettempdir()}"
            )
        if code == -signal.SIGKILL:
            return SystemFailure(
                f"the process that loaded {folder} was killed, as the system does when memory runs out"
            )
        if code < 0:
            said = f"the process ended by {signal.Signals(-code).name} after: {said}"
        return InputError(f"a package must load in {self.loader}, {folder} did not: {said}")


def installed(libraries: Sequence[str]) -> list[str]:
    """The folders that this process imports the libraries from: a user's own, say, which isolated mode leaves out."""
    found = (importlib.util.find_spec(name) for name in libraries)
    return sorted({str(Path(spec.origin).resolve().parents[1]) for spec in found if spec and spec.origin})
