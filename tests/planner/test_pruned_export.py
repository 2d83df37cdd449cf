"""Packages with pruned feed-forward blocks, of every family that has them, against the model without the channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from planner.request import Workload
from planner.runtimes.onnxruntime import fresh
from planner.runtimes.onnxruntime.export import WEIGHTS, write_model
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from supernet.space import Subnet
from tests.planner.runtime_fixtures import VARIANTS, RoundedModel, mixed, save_tiny
from tests.planner.test_runtime_export import CONTEXT, divergence

RUNTIME = OnnxRuntime()


def pruned(files: RoundedModel, kept: tuple[int | None, ...]) -> Subnet:
    """Mixed bits, and these many channels in the layers."""
    subnet = mixed(files.spec)
    for pair, left in zip(files.spec.feed_forwards, kept, strict=True):
        for unit in pair:
            subnet = subnet.replace(unit.name, type(subnet[unit.name])(subnet[unit.name].bits, 32, kept=left))
    return subnet


def expected(files: RoundedModel, subnet: Subnet, windows: np.ndarray) -> np.ndarray:
    model = files.dequantized(Subnet(tuple((unit, choice.whole) for unit, choice in subnet)))
    with torch.no_grad():
        for _, reader in files.spec.feed_forwards:
            kept = subnet[reader.name].kept
            if kept is not None:
                model.get_submodule(reader.linears[0].name).weight[:, kept:] = 0
        return model(torch.from_numpy(windows)).logits.numpy()


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "phi3", "biases"])
def test_a_pruned_package_is_the_model_without_those_channels(family: str, tmp_path: Path) -> None:
    """Of each shape of feed-forward block: gate and up apart or as one, norms after it, channels with biases."""
    name, changes = VARIANTS["llama with biases, heads of 32"] if family == "biases" else (family, {})
    files = RoundedModel(save_tiny(name, tmp_path / "model", **changes))
    windows = np.random.default_rng(0).integers(3, files.spec.vocab_size, (2, 48))
    sizes, holding = [], RUNTIME.holding(files.spec)
    for kept in ((64, 128), (0, 192), (None, 0)):
        subnet, out = pruned(files, kept), tmp_path / str(kept)
        out.mkdir()
        write_model(files, subnet, CONTEXT, 1, out)
        wanted, found = expected(files, subnet, windows), fresh.logits(out, windows)
        assert divergence(wanted, found) < 0.001
        assert np.abs(wanted - found).max() < 0.2 * wanted.std()
        predicted = sum(holding.unit_bytes(unit, subnet[unit.name]) for unit in files.spec.units)
        sizes.append(predicted + holding.rest_bytes(Workload(CONTEXT, 1, 16), files.model_dir))
        assert sizes[-1] == (out / WEIGHTS).stat().st_size
    measured = fresh.measure(out, 32, CONTEXT, new_tokens=8, repeats=1)
    assert measured.tpot_ms > 0
