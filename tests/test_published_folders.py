"""benchmarks/published_folders.csv is what profiles/folder_shares.py was fitted to."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from profiles.folder_shares import FIGURES, FITTED, RUNTIMES

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import published
import published_folders as folders

ROWS = folders.read(folders.TABLE)


def test_every_figure_has_a_source_and_is_possible() -> None:
    raw = list(csv.DictReader(folders.TABLE.open(newline="", encoding="utf-8")))
    assert {name: sum(row["kind"] == name for row in raw) for name in RUNTIMES} == dict(FIGURES)
    assert all(row["source"].startswith("https://") and row["bandwidth_source"] for row in raw)
    for row in ROWS:
        assert 0.05 < row.read_bytes * row.tokens_per_s / row.bandwidth < 0.9, row
        assert 3.4 < 8 * row.file_bytes / (row.parameters * 1e9) < 16.2, row
        assert row.embedding_bytes < row.file_bytes / 2


def test_the_product_keeps_what_the_table_gives() -> None:
    found = published.Fit(ROWS, folders.FOLDERS).shares()
    assert dict(FITTED.share) == pytest.approx(found.share, abs=0.006)
    assert dict(FITTED.layer_ms) == pytest.approx(found.layer_ms, rel=0.02)
    judged, logs = folders.judge(ROWS)
    halves = published.half_bands(judged, logs, names=folders.FOLDERS)
    assert dict(FITTED.half) == pytest.approx(halves, abs=0.006)
    inside = [abs(log) <= halves[row.backend] for row, log in zip(judged, logs, strict=True)]
    assert 0.75 <= sum(inside) / len(inside) <= 0.92
    assert folders.middle_of(logs) < 0.2
