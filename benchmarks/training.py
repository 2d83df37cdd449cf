"""Training steps outside of `bitfleet train`, for the benchmarks that compare some with others."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from supernet.build import Supernet
from supernet.checkpoint import START
from supernet.samplers import SAMPLERS
from supernet.schedules import SCHEDULES
from supernet.timing import seconds_of
from supernet.train import Trainer, TrainOptions


def train(
    teacher: Any, supernet: Supernet, windows: Tensor, options: TrainOptions, sampler: str, schedule: str = "constant"
) -> float:
    """Take the steps, fold what folds, and return the seconds of the steps."""
    supernet.set_dtype(teacher.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        state, parts = Path(scratch) / "state", (SAMPLERS[sampler](), options, Accelerator())
        trainer = Trainer(teacher, supernet, windows, *parts, state, SCHEDULES[schedule]())
        started = time.perf_counter()
        trainer.run()
        seconds = time.perf_counter() - started
    supernet.fold()
    return seconds


def step_seconds(teacher: Any, supernet: Supernet, windows: Tensor, sampler: str) -> float:
    """Of a step's gradients. Nothing moves."""
    supernet.set_dtype(teacher.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        options, state = TrainOptions(1, 1e-3), Path(scratch) / "state"
        trainer = Trainer(teacher, supernet, windows, SAMPLERS[sampler](), options, Accelerator(), state)
        return seconds_of(trainer.try_step, times=2)


def start_of(supernet: Path) -> Path:
    """Where quality.py keeps the codes that the training of this supernet's adapters started from."""
    return supernet.with_name(f"{supernet.name}-{START}")
