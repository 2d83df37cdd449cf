"""What rivals of GGUF files are made from: the full model's file, the importance matrix, and files with kernels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planner.runtimes.llamacpp import export, fresh
from planner.runtimes.llamacpp.serving import WEIGHTS, Serving
from planner.runtimes.llamacpp.tensors import tensors_of
from supernet.loading import load_model
from supernet.model import spec_of_model
from tests.planner.llamacpp.models import made, mixed
from tests.tiny import save_tiny, windows

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import gguf_kernels
import gguf_losses
import gguf_own

CONTEXT = 256


@pytest.fixture
def full(tmp_path: Path) -> Any:
    return load_model(str(save_tiny(tmp_path / "model")))


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_the_file_of_floats_says_what_the_model_says(family: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    full = load_model(str(save_tiny(tmp_path / "model", family)))
    spec, package = spec_of_model(full.model, "tiny"), tmp_path / "package"
    package.mkdir()
    gguf_own.write_floats(full.model, spec, tmp_path / "model", package / WEIGHTS)
    Serving(CONTEXT, None, ()).save(package)
    ids = windows(2)
    theirs = torch.from_numpy(fresh.logits(package, ids.numpy()))
    torch.testing.assert_close(theirs, full.model(ids).logits, rtol=1e-3, atol=5e-3)


def test_every_matrix_of_the_layers_has_the_mean_square_of_its_inputs(full: Any) -> None:
    spec, ids = spec_of_model(full.model, "tiny"), windows(5, 16)
    found = gguf_own.importance(full.model, spec, ids)
    in_layers = {t.name for t in tensors_of(spec) if t.name.startswith("blk.") and len(t.shape) == 2}
    assert found.keys() == in_layers and len(in_layers) == 7 * spec.num_layers
    embedded = full.model.get_input_embeddings()(ids)
    first = full.model.model.layers[0].input_layernorm(embedded)
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"):
        np.testing.assert_allclose(found[name], first.square().mean((0, 1)), rtol=1e-5)
    for tensor in tensors_of(spec):
        assert tensor.name not in found or found[tensor.name].shape == (tensor.shape[1],)


def test_q2_0_is_the_same_numbers_in_q4_0() -> None:
    from gguf import GGMLQuantizationType, dequantize

    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (6, 64), np.uint8)
    scales = rng.normal(size=(6, 1)).astype(np.float16)
    packed = sum(codes.reshape(6, 16, 4)[..., place] << 2 * place for place in range(4)).astype(np.uint8)
    blocks = np.concatenate([scales.view(np.uint8).reshape(6, 2), packed], 1)
    held = dequantize(gguf_kernels.in_q4_0(blocks), GGMLQuantizationType.Q4_0).reshape(6, 64)
    np.testing.assert_array_equal(held, (codes.astype(np.float32) - 1) * scales.astype(np.float32))


def test_a_file_with_kernels_says_what_the_file_said(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    files = made("llama", tmp_path / "model")
    (tmp_path / "package").mkdir()
    (tmp_path / "quick").mkdir()
    export.write_model(files, mixed(files.spec, "sym2g64", "sym8g32"), CONTEXT, 1, tmp_path / "package")
    assert gguf_kernels.has_q2_0(tmp_path / "package" / WEIGHTS)
    quick = gguf_losses.served_quickly(tmp_path / "package", tmp_path / "quick")
    assert quick == tmp_path / "quick" and not gguf_kernels.has_q2_0(quick / WEIGHTS)
    ids = windows(1).numpy()
    np.testing.assert_allclose(fresh.logits(quick, ids), fresh.logits(tmp_path / "package", ids), rtol=0, atol=2e-3)
