"""1,000 mutated inputs for every reader: each is read or a documented error; benchmarks/fuzz.py tries more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from fuzz import fuzz
from fuzz_readers import READERS


@pytest.mark.parametrize("name", READERS)
def test_mutated_inputs_end_in_documented_errors(tmp_path: Path, name: str) -> None:
    found = fuzz(READERS[name], 1000, 0, tmp_path, limit_s=30.0)  # other tests run beside; the benchmark allows 5
    assert found.wrong == []
    assert found.read > 20
    assert found.refused[2] > 200
