"""benchmarks/published.csv is what profiles/shares.py was fitted to, and every figure says where it was read."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest

from profiles.shares import BACKENDS, DEVIATION, FITTED, GROUPS, group_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import published

RAW = list(csv.DictReader(published.TABLE.open(newline="", encoding="utf-8")))
ROWS = published.read(published.TABLE)


def test_every_figure_has_a_source_and_is_possible() -> None:
    assert len(ROWS) >= 60
    assert len({tuple(row.values()) for row in RAW}) == len(RAW)
    for raw in RAW:
        assert raw["source"].startswith("https://"), raw
        assert raw["bandwidth_source"], raw
        assert raw["file_bytes_basis"] in ("published", "computed"), raw
        assert raw["kind"] in BACKENDS, raw
        assert group_of(raw["type"]) in GROUPS, raw
        read = int(raw["file_bytes"]) - int(raw["embedding_bytes"])
        share = read * float(raw["tokens_per_s"]) / (float(raw["bandwidth_gb_per_s"]) * 1e9)
        assert 0.1 < share < 0.95, (share, raw)
        bits = 8 * int(raw["file_bytes"]) / (float(raw["parameters_b"]) * 1e9)
        assert 3 < bits < 16.5, (bits, raw)


def test_the_product_keeps_what_the_table_gives() -> None:
    fit = published.Fit(ROWS)
    found = fit.shares()
    for key, share in FITTED.share.items():
        assert share == pytest.approx(found.share[key], abs=0.006), key
    assert dict(FITTED.layer_ms) == pytest.approx(found.layer_ms, rel=0.02)
    assert found.core_layer_ms == pytest.approx(FITTED.core_layer_ms, rel=0.02)


def test_bands_and_deviations_are_of_devices_left_out() -> None:
    logs = published.left_out(ROWS)
    assert dict(FITTED.half) == pytest.approx(published.half_bands(ROWS, logs), abs=0.006)
    spread = published.deviation(ROWS, logs)
    assert (spread.device, spread.group, spread.figure) == pytest.approx(
        (DEVIATION.device, DEVIATION.group, DEVIATION.figure), abs=0.006
    )
    inside = [abs(log) <= FITTED.half[row.backend] for log, row in zip(logs, ROWS, strict=True)]
    assert 0.75 <= sum(inside) / len(inside) <= 0.9
    errors = sorted(abs(math.expm1(log)) for log in logs)
    assert errors[len(errors) // 2] < 0.2
