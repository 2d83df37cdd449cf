"""Python programs in processes forked from one that has imported the heavy libraries already.

A program that starts anew imports torch and transformers for seconds, and on a tiny model works for a moment. What runs
is the same code, and what it does stays in its process; tests whose claim is how a program starts do without this.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import psutil

BUILDER = "onnxruntime_genai.models.builder"


class _Warm(ForkServerProcess):
    """With the environment of who starts it, as a process that starts anew has it."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.environment = dict(os.environ)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        super().run()


class Forks(ForkServerContext):
    Process = _Warm


FORKS = Forks()
FORKS.set_forkserver_preload([BUILDER, "accelerate", "transformers.models.llama.modeling_llama"])


def run(
    command: Sequence[str], text: bool = True, env: Mapping[str, str] | None = None, cwd: Path | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """As `subprocess.run` with its output captured, of a Python's command line that names a script or, after -m, a
    module. One that takes longer than the time-out, in seconds, is killed with all that it started."""
    _, *words = command
    program = words[words.index("-m") :] if "-m" in words else words
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("stdout", "stderr")]
        process = FORKS.Process(target=_run, args=(program, dict(env or os.environ), cwd or Path.cwd(), said))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            for one in (*psutil.Process(process.pid).children(recursive=True), process):
                one.kill()
            raise subprocess.TimeoutExpired(command, timeout, *(path.read_text() for path in said if path.exists()))
        assert text
        return subprocess.CompletedProcess(command, process.exitcode, *(path.read_text() for path in said))


def _run(program: Sequence[str], env: Mapping[str, str], cwd: Path, said: Sequence[Path]) -> None:
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    if program[0] == "-m":
        sys.argv = list(program[1:])
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(program)
        sys.path.insert(0, str(Path(program[0]).parent))
        runpy.run_path(program[0], run_name="__main__")
