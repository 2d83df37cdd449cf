"""Several processes on CPUs, launched as a person would; the launcher alone does not start anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.warm import run

ROOT = Path(__file__).parents[1]
CPU = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PLAIN = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
TWO = ("--multi_gpu", "--num_processes", "2")  # where `accelerate launch` takes the number of processes on CPUs from


def launch(options: tuple[str, ...], *line: object) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` with `options`, at a free port, of a script and its arguments; asserts that it succeeds."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", "0"]
    done = run([*launcher, *map(str, line)], cwd=ROOT, env={**os.environ, **CPU}, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done
