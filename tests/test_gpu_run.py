"""benchmarks/gpu.sh without a GPU: its quickest parts, a part that fails, and what becomes of its numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from profiles import catalog
from profiles.device import Calibration, DeviceProfile
from profiles.kernels import KernelEntry, KernelTable

ROOT = Path(__file__).parents[1]


def run(command: list[str], out: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "PYTHON": sys.executable, "OUT": str(out), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_parts_run_by_themselves_and_one_that_fails_is_a_line(tmp_path: Path) -> None:
    done = run(["benchmarks/gpu.sh", "here", "--parts", "long,products", "--seconds", "120"], tmp_path)
    assert done.returncode == 1, done.stderr
    assert "nothing was measured on a GPU" in done.stdout
    products, long = read(tmp_path / "products.json"), read(tmp_path / "long.json")
    assert (products["status"], products["on_gpu"], long["status"]) == ("done", False, "failed")
    assert "training.json" in long["error"]
    entries = products["profile"]["kernels"]["entries"]
    assert {one["kernel"] for one in entries} >= {"bfloat16", "tinygemm"}
    assert products["left_out"].keys() >= {"Humming"}
    again = run(
        [sys.executable, "benchmarks/gpu_catalog.py", str(tmp_path / "products.json"), "h200-sxm-141gb"], tmp_path
    )
    assert again.returncode == 1
    assert "timed on a GPU, this result has none" in again.stderr


def test_a_part_is_ended_when_its_time_is_up(tmp_path: Path) -> None:
    done = run(["benchmarks/gpu.sh", "here", "--parts", "blocks", "--seconds", "-4.5"], tmp_path)
    assert done.returncode == 1
    found = read(tmp_path / "blocks.json")
    assert found["status"] == "out of time"
    assert found["seconds"] < 30


def test_what_was_timed_becomes_a_catalogue_entry(tmp_path: Path) -> None:
    times = KernelEntry("vllm", 4, 64, 1, 4096, 4096, 1, 0.004, 0.0039, 0.0041, 15, "Humming")
    measured = DeviceProfile(
        "nvidia-h200", "cuda", "NVIDIA", "NVIDIA H200", 150_000_000_000, True, "bitfleet profile device", "2026-12-01",
        architecture="sm_90", available_bytes=149_000_000_000, bandwidth_bytes_per_s=4.3e12, bandwidth_basis="measured",
        bf16_ops_per_s=7.9e14, kernels=KernelTable((times,), "2026-12-01", {"torch": "2.11.0"}),
        calibrations=(Calibration("torch", "launch_ms", 0.004, "ms"),), versions={"driver": "580"},
    )  # fmt: skip
    result = tmp_path / "products.json"
    result.write_text(json.dumps({"on_gpu": True, "profile": measured.to_json()}), encoding="utf-8")
    command = [sys.executable, "benchmarks/gpu_catalog.py", str(result)]
    done = run([*command, "h200-sxm-141gb"], tmp_path)
    assert done.returncode == 0, done.stderr
    found, known = DeviceProfile.from_json(json.loads(done.stdout)), catalog.load("h200-sxm-141gb")
    assert found.kernels.entries == (times,)
    assert (found.memory_bytes, found.bf16_ops_per_s) == (known.memory_bytes, known.bf16_ops_per_s)
    assert (found.bandwidth_bytes_per_s, found.available_bytes, found.measured) == (4.3e12, None, True)
    assert "2026-12-01" in found.notes
    assert found == replace(found, source=known.source)
    wrong = run([*command, "a100-sxm-80gb"], tmp_path)
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
    assert "sm_80" in wrong.stderr


@pytest.mark.parametrize("wrong", [["there"], ["here", "--parts", "nothing"], ["here", "--model", "x"]])
def test_what_is_mistyped_is_refused(wrong: list[str], tmp_path: Path) -> None:
    done = run(["benchmarks/gpu.sh", *wrong], tmp_path)
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())
