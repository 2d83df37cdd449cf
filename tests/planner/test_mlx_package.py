"""Packages for MLX, read by MLX and mlx-lm on the CPU, in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planner.request import Workload
from planner.runtimes.mlx import description
from planner.runtimes.mlx.holding import MlxHolding
from planner.runtimes.mlx.layout import packed
from planner.runtimes.mlx.packages import MlxPackages
from planner.runtimes.mlx.runtime import Mlx
from profiles.catalog import load
from supernet.space import Choice
from tests.planner.folder_fixtures import GridModel, cycled, packaged_model, stored
from tests.planner.runtime_fixtures import VARIANTS, save_tiny

MIX = ("sym2g64", "int3g64", "sym4g32", "int4g64", "sym5g32", "sym6g64", "sym8g64")
PACKAGES = "pip install bitfleet[mlx]"
LOADED = (
    "llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "granite", "nemotron", "smollm3", "ernie", "hunyuan",
    "llama with biases, heads of 32", "llama without groups, linear", "llama, dynamic", "llama, yarn", "llama, llama3",
    "smollm3 with a window", "hunyuan, alpha",
)  # fmt: skip
REFUSED = {
    "olmo": "OlmoForCausalLM", "gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM",
    "mistral with a window": "window of 100", "qwen3 with a window by layer": "window of 100",
    "phi3, longrope": "longrope",
}  # fmt: skip


def tiny(variant: str, folder: Path) -> GridModel:
    family, options = VARIANTS[variant]
    return GridModel(save_tiny(family, folder, **options), untied=True)


@pytest.mark.parametrize("variant", LOADED)
def test_mlx_lm_answers_as_the_subnet(variant: str, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core", reason=PACKAGES)
    utils = pytest.importorskip("mlx_lm.utils", reason=PACKAGES)
    files = tiny(variant, tmp_path / "model")
    assert MlxHolding(files.spec).refusal() is None
    subnet = cycled(files.spec, MIX)
    (tmp_path / "package").mkdir()
    MlxPackages().write(files, subnet, Workload(128, 1, 64), None, tmp_path / "package")
    ids = torch.randint(3, 259, (2, 120), generator=torch.Generator().manual_seed(0))
    model, _ = utils.load_model(tmp_path / "package")
    model.set_dtype(mx.float32)
    found = torch.from_numpy(np.array(model(mx.array(ids.numpy()))))
    with torch.no_grad():
        wanted = packaged_model(files, subnet, bias=True)(ids).logits
    assert (found - wanted).abs().max() < 5e-6 < 1e-5 * 5 * wanted.abs().max()


@pytest.mark.parametrize("variant", REFUSED)
def test_what_mlx_lm_computes_otherwise_is_refused(variant: str, tmp_path: Path) -> None:
    refusal = MlxHolding(tiny(variant, tmp_path).spec).refusal()
    assert refusal is not None and REFUSED[variant] in refusal


@pytest.mark.parametrize(
    "text", ["sym2g64", "sym3g32", "sym4g32", "sym5g64", "sym6g64", "sym8g128", "int4g64", "int8g32"]
)
def test_a_symmetric_matrix_is_stored_without_any_rounding(text: str, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core", reason=PACKAGES)
    choice, name = Choice.parse(text), "model.layers.0.mlp.down_proj"
    files = tiny("llama", tmp_path)
    folded = files.folded(name, choice)
    arrays = packed(files.spec.unit(name), name, folded, choice)
    weight, scales, biases = (mx.array(np.ascontiguousarray(array)) for _, array in arrays)
    assert {scales.dtype, biases.dtype} == {mx.float16}
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    found = np.array(mx.dequantize(weight, scales, biases, group_size=choice.group_size, bits=choice.bits))
    assert np.array_equal(found, stored(folded, bias=True))
    off = np.abs(found - folded.dequantized()).max()
    assert off == 0 if choice.grid == "sym" else 0 < off < 1e-3 * np.abs(found).max()


def test_the_rotary_embedding_is_said_where_mlx_lm_looks_for_it(tmp_path: Path) -> None:
    files = GridModel(
        save_tiny("llama", tmp_path / "model", rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    )
    (tmp_path / "package").mkdir()
    MlxPackages().write(files, cycled(files.spec, MIX), Workload(128, 1, 64), None, tmp_path / "package")
    config: dict[str, Any] = json.loads((tmp_path / "package" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e5 and "rope_scaling" not in config
    linear = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}}
    assert description.rotary(linear) == {
        "rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0, "type": "linear"}
    }  # fmt: skip
    assert description.rotary({"rope_theta": 1e4}) == {}


def test_it_runs_on_apple_silicon() -> None:
    names = ("macbook-air-m2-8gb", "xeon-8480-256gb", "rtx-4090-24gb")
    apple, intel, nvidia = (Mlx().device_refusal(load(name)) for name in names)
    assert apple is None and "Intel" in str(intel) and "cuda" in str(nvidia)
