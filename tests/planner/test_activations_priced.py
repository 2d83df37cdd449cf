"""What int8 activations are said to cost is what real packages are off by, with massive channels and without."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from planner.answers import divergence
from planner.package import write_package
from planner.request import Workload
from supernet.create import create
from supernet.recipe import Recipe
from tests.planner.packages import RUNTIME, tiny_plan
from tests.planner.runtime_fixtures import save_tiny


def with_massive_channels(model: Path, factor: float) -> Path:
    """Two channels of every norm so many times larger: what reads them sees little else."""
    for file in model.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if "layernorm" in name:
                tensor[[3, 40]] *= factor
        save_file(tensors, file, {"format": "pt"})
    return model


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_the_price_is_what_a_package_is_off_by(tmp_path: Path, factor: float) -> None:
    model = with_massive_channels(save_tiny("llama", tmp_path / "model"), factor)
    recipe = Recipe(bits=(4, 8), group_size=16, steps=8, batch=2, window_tokens=64, quantizer="rtn", awq=0.0)
    files = create(str(model), tmp_path / "supernet", recipe)
    plan = tiny_plan(files, Workload(128, 1, 32), files.space.uniform(files.spec, 8))
    package = write_package(RUNTIME, files, plan, tmp_path / "package")
    found, _ = divergence(RUNTIME.engine().speaker(package.path), package.plan, files)
    assert found == pytest.approx(files.activations["int8"], rel=0.05, abs=1e-6)
    assert (found > 2e-5) == (factor > 1)  # 3.5e-6 and 9.9e-5 where products are of float32, more of bfloat16
