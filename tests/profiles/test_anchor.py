"""What `llama-bench -o json` wrote on a device becomes calibrations of its profile, or one line about what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from profiles import catalog
from profiles.anchor import anchored, build_of, figures, layers_of
from profiles.device import DeviceProfile
from profiles.shares import FITTED, PARTS, RUNTIME, calibration_name, decode_estimate
from records.errors import InputError

# As llama-bench writes them; fields that are not read left out. An RTX 3090 with Llama 3 8B.
DECODE = {
    "build_commit": "933414c0b", "build_number": 7293, "backends": "CUDA", "model_type": "llama 8B Q4_K - Medium",
    "model_size": 4912898304, "model_n_params": 8030261312, "n_gpu_layers": 99, "n_prompt": 0, "n_gen": 128,
    "n_depth": 0, "avg_ts": 115.42,
}  # fmt: skip
PROMPT = {**DECODE, "n_prompt": 512, "n_gen": 0, "avg_ts": 4030.4}


def test_only_what_generates_is_read() -> None:
    deep = {**DECODE, "n_depth": 8192, "avg_ts": 87.49}
    (found,) = figures([PROMPT, DECODE, deep], "x.json")
    assert (found.backend, found.group, found.file_bytes) == ("cuda", "k", 4912898304)
    assert (found.layers, found.tokens_per_s) == (34, 115.42)
    assert build_of([PROMPT]) == "7293 933414c0b"


@pytest.mark.parametrize(("billions", "layers"), [(3.2, 28), (8.0, 32), (14.8, 48), (32.5, 64), (70.6, 80)])
def test_guessed_layers(billions: float, layers: int) -> None:
    assert layers_of(billions * 1e9) == pytest.approx(layers, rel=0.2)


@pytest.mark.parametrize(
    ("said", "on_gpu", "backend"),
    [
        ("CPU", 0, "cpu"),
        ("CUDA", 99, "cuda"),
        ("CUDA", 0, "cpu"),
        ("BLAS,MTL", -1, "metal"),
        ("Metal,BLAS", 99, "metal"),
    ]
    + [("Vulkan", 99, "vulkan"), ("CUDA0,CPU", 99, "cuda")],
)
def test_backends(said: str, on_gpu: int, backend: str) -> None:
    (found,) = figures([{**DECODE, "backends": said, "n_gpu_layers": on_gpu}], "x.json")
    assert found.backend == backend


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama 8B IQ4_XS - 4.25 bpw"}, "no speed is known for the type IQ4_XS"),
        ({"model_type": "llama 8B"}, "names no type of GGUF, got 'llama 8B'"),
        ({"n_gpu_layers": 20}, "kept layers on the host .n_gpu_layers 20.; measure the whole model with -ngl 99"),
        ({"backends": "ROCm"}, "backends in row 1 of x.json is ROCm; speeds are known for cpu, cuda"),
        ({"avg_ts": 0}, "must be above 0"),
        ({"avg_ts": "fast"}, "avg_ts in row 1 of x.json must be a number, got 'fast'"),
        ({"n_gen": True}, "n_gen in row 1 of x.json must be a number"),
        ({"model_size": math.nan}, "model_size in row 1 of x.json must be a number"),
        ({"n_gen": 0}, "x.json has no row that only generates; run `llama-bench -p 0 -n 128"),
    ],
)
def test_what_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        figures([{**DECODE, **change}], "x.json")


@pytest.mark.parametrize("rows", [{}, [1], "x", None])
def test_what_is_no_array_of_rows(rows: Any) -> None:
    with pytest.raises(InputError, match=r"x.json must be the array"):
        figures(rows, "x.json")


def test_an_anchored_device_is_estimated_near_what_it_did(tmp_path: Path) -> None:
    device = catalog.load("rtx-3090-24gb")
    slow = [{**DECODE, "avg_ts": 90.0}, {**DECODE, "avg_ts": 92.0}]
    mended = anchored(device, figures(slow, "x.json"), "7293")
    assert {c.name for c in mended.calibrations} == {calibration_name("cuda", part) for part in PARTS}
    assert mended.versions["llama.cpp"] == "7293"
    assert not mended.measured
    before, after = (decode_estimate(d, "cuda", {"k": 4912898304}, 34) for d in (device, mended))
    assert before.ms < after.ms < 1e3 / 90
    assert after.ms == pytest.approx(1e3 / 91, rel=0.05)
    assert after.low_ms < 1e3 / 91 < after.high_ms
    assert after.spread < before.spread
    mended.save(tmp_path / "own.json")
    assert DeviceProfile.load(tmp_path / "own.json") == mended
    again = anchored(mended, figures(slow, "x.json"))
    assert again.calibrations == mended.calibrations  # replaced, not added to
    assert again.calibration(RUNTIME, calibration_name("vulkan", "k")) is None


def test_an_anchor_that_agrees_leaves_the_middle_and_narrows_the_band() -> None:
    device = catalog.load("rtx-3090-24gb")
    ms = FITTED.read_ms("cuda", "k", DECODE["model_size"], 936e9) + FITTED.layers_ms("cuda", 34, None)
    mended = anchored(device, figures([{**DECODE, "avg_ts": 1e3 / ms}], "x.json"))
    found = mended.calibration(RUNTIME, calibration_name("cuda", "k"))
    assert found is not None and found.spread is not None
    assert found.value == pytest.approx(1.0)
    assert found.spread < FITTED.half["cuda"]


def test_the_command(bitfleet: Any, tmp_path: Path) -> None:
    bench, out = tmp_path / "bench.json", tmp_path / "own.json"
    bench.write_text(json.dumps([PROMPT, DECODE]))
    command = ("profile", "anchor", "rtx-3090-24gb", "--llama-bench", str(bench), "--out", str(out))
    said = bitfleet(*command).out
    assert "BAND NOW" in said
    assert DeviceProfile.load(out).calibration(RUNTIME, calibration_name("cuda", "k")) is not None
    data = json.loads(bitfleet(*command, "--json").out)
    assert DeviceProfile.from_json(data) == DeviceProfile.load(out)


def test_typed_figures_are_as_those_of_llama_bench(bitfleet: Any, tmp_path: Path) -> None:
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps([{**DECODE, "model_size": 4912000000, "model_n_params": 8030000000}]))
    outs = [tmp_path / "a.json", tmp_path / "b.json"]
    bitfleet("profile", "anchor", "rtx-3090-24gb", "--llama-bench", bench, "--out", outs[0])
    bitfleet("profile", "anchor", "rtx-3090-24gb", "--figure", "Q4_K_M, 4.912GB, 8.03B, 115.42", "--out", outs[1])
    read, typed = (DeviceProfile.load(out) for out in outs)
    assert read.calibrations == typed.calibrations
    assert (read.versions["llama.cpp"], "llama.cpp" in typed.versions) == ("7293 933414c0b", False)


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (f"Q4_K_M,4.92GB,{'9' * 400}B,46.2", "a model has at most 100000B parameters, got infB"),
        (f"Q4_K_M,4.92GB,8.03B,{'9' * 400}", "a figure is within 100 times the estimate"),
        (f"Q4_K_M,4.92GB,8.03B,0.{'0' * 300}1", "a figure is within 100 times the estimate"),
        ("Q4_K_M,4.92MB,8.03B,46.2e3", "--figure is type, size"),
        ("Q4_K_M,4.92TB,8.03B,46.2", "a figure is within 100 times the estimate"),
        (f"Q4_K_M,{'9' * 400}GB,8.03B,46.2", "a size is a number and a unit"),
    ],
)
def test_figures_that_no_device_has_are_refused(bitfleet: Any, tmp_path: Path, figure: str, words: str) -> None:
    out = tmp_path / "out.json"
    done = bitfleet("profile", "anchor", "l4-24gb", "--figure", figure, "--out", out)
    assert done.code == 2 and words in done.error
    assert not out.exists()
