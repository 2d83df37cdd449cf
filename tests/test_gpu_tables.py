"""What vLLM's pricing keeps is what the tables give, where they are installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from planner.runtimes.vllm.by_tables import PACKED_KERNEL, STEP_MS

pytest.importorskip("aiconfigurator_core", reason="pip install 'bitfleet[gpu-tables]'")
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu_tables


@pytest.mark.long
def test_the_product_keeps_what_the_tables_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # what keeps other tests from the tables
    assert PACKED_KERNEL.start_ms == pytest.approx(gpu_tables.start_ms(), rel=0.03)
    runs = [*gpu_tables.served(), *gpu_tables.published()]
    assert len(runs) == 133 and pytest.approx(gpu_tables.beside(runs), rel=0.03) == STEP_MS
    errors = [abs(run.predicted(PACKED_KERNEL.start_ms, STEP_MS) / run.ms - 1) for run in runs]
    assert sum(errors) / len(errors) < 0.15
