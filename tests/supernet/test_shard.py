"""Several processes that share the full model and the codes out, launched as a person would, beside one process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import supernet.create
from supernet.checkpoint import SupernetFiles
from supernet.create import create
from supernet.grids.packing import packed_bytes
from supernet.recipe import Recipe
from supernet.sensitivity_table import SensitivityTable
from supernet.shard import Part, fsdp_plugin, scattered
from tests.launch import ROOT, launch
from tests.supernet.conftest import Made
from tests.tiny import TEXT, save_tiny

pytestmark = pytest.mark.long

RECIPE = Recipe(bits=(2, 3, 8), grid="int", group_size=16, quantizer="rtn", steps=6, batch=4, window_tokens=16)
RECIPES = {
    "scales": RECIPE,
    "lora, taught by codes": replace(
        RECIPE, adapter="lora", sharing="matched", checkpointing=True, teacher="quantized"
    ),
}
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from accelerate import PartialState
import supernet.create
from supernet.stages import train, trial

source, folder = sys.argv[1], Path(sys.argv[2])
train.compute_dtype = trial.compute_dtype = lambda device: torch.float32
fit, found = train.fit, []

def spy(work, net):
    model = work.model
    before = sum(p.nbytes for p in model.parameters())
    stored = ("_codes", "_scale", "_zero")
    codes = sum(v.nbytes for m in net.matrices.values() for n, v in m.named_buffers() if n.endswith(stored))
    fit(work, net)
    own = sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in model.parameters())
    found.append([before, own, codes])

train.fit = spy
for name, recipe in json.loads(sys.argv[3]).items():
    supernet.create.create(source, folder / name, supernet.create.Recipe.from_json(recipe))
(folder / f"bytes{PartialState().process_index}.json").write_text(json.dumps(found))
PartialState().destroy_process_group()
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the text, the model, supernets by the names of their recipes that two processes made, and the bytes
    that each held."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "text.txt").write_text(TEXT * 4)
    source = save_tiny(folder / "model", "mistral")
    script = folder / "run.py"
    script.write_text(SCRIPT)
    recipes = {name: replace(recipe, data=str(folder / "text.txt")).to_json() for name, recipe in RECIPES.items()}
    config = ("--config_file", str(ROOT / "examples" / "fsdp.yaml"))
    launch(config, script, source, folder, json.dumps(recipes))
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_two_sharded_processes_agree_with_one(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("train", "trial"):
        monkeypatch.setattr(f"supernet.stages.{stage}.compute_dtype", lambda device: torch.float32)
    recipe = replace(RECIPES[name], data=str(shared / "text.txt"))
    one = create(str(shared / "model"), tmp_path / "one", recipe)
    two = supernet.create.open_supernet(shared / name)
    assert two.info["losses"] == pytest.approx(one.info["losses"], rel=1e-4)
    assert kls(two) == pytest.approx(kls(one), rel=1e-3)
    tables = sum(unit.weights for unit in one.spec.units if unit.is_table) + one.spec.hidden_size  # and the last norm
    stored = sum(
        linear.out_features * (packed_bytes(linear.in_features, choice.bits) + 5 * linear.in_features // 16)
        for unit in one.spec.units
        for linear in unit.linears
        for choice in one.space[unit.name]
    )
    for process in (0, 1):
        held = json.loads((shared / f"bytes{process}.json").read_text())
        assert len(held) == len(RECIPES)
        before, own, codes = held[list(RECIPES).index(name)]
        assert own == (before if recipe.teacher == "quantized" else (before + tables * 4) / 2)  # float32
        assert codes == stored / 2


def kls(files: SupernetFiles) -> list[float]:
    assert len(files.info["losses"]) == RECIPE.steps
    table = SensitivityTable.load(files.path / "sensitivity.json")
    return [table.predict(files.space.uniform(files.spec, bits)) for bits in RECIPE.bits]


def test_parts_make_the_whole(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes one after the other, joined as they would be."""
    unit = made.spec.units[1]
    for choice in made.space[unit.name]:
        stored = made.supernet.matrices[unit.linears[0].name].stored(choice)
        for processes in (2, 3, 7):
            parts = [scattered(stored, process, processes) for process in range(processes)]

            def join(whole: torch.Tensor, part: torch.Tensor, parts: list[Part] = parts) -> None:
                name = next(n for n, known in parts[0].parts.items() if known is part)
                whole.copy_(torch.cat([one.parts[name] for one in parts]))

            monkeypatch.setattr(torch.distributed, "all_gather_single", join)
            first = parts[0]
            assert len(first.parts["codes"]) == -(-stored.codes.numel() // processes)
            joined = first.join(first.parts)
            assert torch.equal(joined.packed(), stored.codes)
            assert torch.equal(joined.scale, stored.scale)
            assert torch.equal(joined.zero, stored.zero)
            weights = [weight.dequantize() for weight in (joined, stored)]
            assert torch.equal(*weights)


class Two:
    num_processes = 2


def test_only_an_fsdp_config_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert fsdp_plugin(Two()) is None


def test_fsdp1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="fsdp_version must be 2, got 1; set it in accelerate's config file"):
        fsdp_plugin(Two())
