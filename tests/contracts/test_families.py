"""The models that people run, the whole way: trained, planned, exported, loaded, and answering as their subnet does.

Each is its family in small, with what sets it apart: windows in all but some layers, a scaled rotary embedding, norms
of heads, experts. Attention is made to matter, so that what a package loses of it is heard.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from planner import pipeline
from planner.answers import against_supernet
from planner.package import open_package, write_package
from planner.request import Budget, Workload
from planner.runtimes import RUNTIMES
from profiles.catalog import load
from records.errors import InputError, NotInstalledError
from supernet.checkpoint import SupernetFiles
from supernet.create import create
from supernet.recipe import Recipe
from tests.planner.runtime_fixtures import MIXTURES, VARIANTS, save_tiny

LICENSE = Path(__file__).resolve().parents[2] / "LICENSE"
DEVICES = {"llamacpp": "laptop-i5-1240p-8gb", "onnxruntime": "laptop-i5-1240p-8gb", "vllm": "rtx-4090-24gb"}
WORKLOAD, BUDGET = Workload(192, 1, 64), Budget(2 * 10**9)
EXPERTS = [model for model, _ in MIXTURES.values()]
SIX = ["sliding_attention"] * 5 + ["full_attention"]


@dataclass(frozen=True)
class Family:
    """`refused` is what a runtime that cannot hold it says, by the runtime's name; `kl` what the others may be off."""

    model: str
    settings: dict[str, Any]
    refused: dict[str, str] = field(default_factory=dict)


ALL_DENSE = "tested with"
FAMILIES = {
    "Gemma 3": Family("gemma3", {"num_hidden_layers": 6, "layer_types": SIX, "sliding_window": 20,
                                 "query_pre_attn_scalar": 32}),
    "Qwen3": Family("qwen3", {}),
    "Llama 3": Family("llama", VARIANTS["llama, llama3"][1] | {"tie_word_embeddings": False}),
    "Phi-4-mini": Family("phi3", VARIANTS["phi-4-mini"][1]),
    "Mixtral": Family(*MIXTURES["mixtral"], {"onnxruntime": "MixtralForCausalLM"}),
    "Qwen3-MoE": Family(*MIXTURES["qwen3moe"], {"onnxruntime": "Qwen3MoeForCausalLM"}),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, SupernetFiles]:
    family, folder = FAMILIES[request.param], tmp_path_factory.mktemp("family")
    save_tiny(family.model, folder / "model", attention=8.0, embedding=4.0, **family.settings)
    recipe = Recipe((4, 8), group_size=32, quantizer="gptq", steps=2, batch=2, window_tokens=64, data=str(LICENSE))
    return family, create(str(folder / "model"), folder / "supernet", recipe)


@pytest.mark.parametrize("name", DEVICES)
def test_the_whole_way(name: str, trained: tuple[Family, SupernetFiles], tmp_path: Path) -> None:
    family, files = trained
    runtime, device = RUNTIMES[name](), load(DEVICES[name])
    if name in family.refused:
        with pytest.raises(InputError, match=family.refused[name]) as refused:
            pipeline.plan(files, runtime, device, WORKLOAD, BUDGET, trials=0)
        assert "\n" not in str(refused.value)
        return
    roomy = pipeline.plan(files, runtime, device, WORKLOAD, BUDGET, trials=0)
    tight = Budget(BUDGET.memory_bytes, disk_bytes=int(0.85 * roomy.chosen.disk_bytes))
    made = pipeline.plan(files, runtime, device, WORKLOAD, tight, trials=0)
    units = [unit for unit in files.spec.units if not unit.is_table]
    assert {made.subnet[unit.name].bits for unit in units} == {4, 8}
    experts = [note for note in made.notes if "experts of a layer" in note]
    if family.model in EXPERTS:
        assert len(experts) == 1 and "of the text that the codes were found with" in experts[0]
    else:
        assert not experts
    try:
        package = write_package(runtime, files, made, tmp_path / "package")
        package.check(runtime)
        found = against_supernet(runtime, package, str(files.path))
    except NotInstalledError as error:
        pytest.skip(str(error))
    assert set(experts) <= set(open_package(package.path).plan.notes)
    weights = sum((package.path / file).stat().st_size for file in runtime.packages.weight_files)
    assert weights == made.chosen.disk_bytes
    if name != "vllm":  # which bitfleet does not run
        assert found.measured is not None and found.measured < 0.01, found
