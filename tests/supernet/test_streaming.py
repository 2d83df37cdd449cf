"""A supernet made from a model's files is the one made in memory, and goes on wherever it was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from records.errors import InputError
from supernet.checkpoint import SCALING, SupernetFiles
from supernet.create import create
from supernet.folder import PREPARING
from supernet.recipe import Recipe
from tests.supernet.gguf_files import save_gguf
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(bits=(2, 4, 8), group_size=16, quantizer="gptq", batch=2, window_tokens=16, steps=1, train_bits=())
SCRIPT = """
import sys
from pathlib import Path
from supernet.create import create
from supernet.recipe import Recipe
import json
create(sys.argv[1], Path(sys.argv[2]), Recipe.from_json(json.loads(sys.argv[3])), streamed=True,
       progress=lambda what, done, total: print(what, flush=True))
"""


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bfloat16 folder of an untied model with biases."""
    path = tmp_path_factory.mktemp("narrow")
    model = tiny_model("qwen2", tie_word_embeddings=False, num_hidden_layers=3)
    model.to(torch.bfloat16).save_pretrained(path, max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def told(files: SupernetFiles) -> dict[str, Any]:
    """All that a folder holds, but for when it was made and by whom."""
    table = json.loads((files.path / "sensitivity.json").read_text())
    info = {key: value for key, value in files.info.items() if key != "date"}
    return {"hashes": dict(files.hashes), "info": info, "model": files.spec, "sensitivities": table["units"]}


@pytest.fixture(scope="module")
def expected(narrow: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return told(create(narrow, tmp_path_factory.mktemp("whole") / "net", replace(RECIPE, data=data)))


def test_a_streamed_supernet_is_the_one_made_in_memory(
    narrow: str, data: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    files = create(narrow, tmp_path / "net", replace(RECIPE, data=data), streamed=True)
    assert told(files) == expected
    assert files.finished
    assert not (tmp_path / "net" / PREPARING).exists()


@pytest.mark.parametrize("quantizer", ["gptq", "rtn"])
def test_a_tied_gguf_file_is_streamed_as_well(quantizer: str, data: str, tmp_path: Path) -> None:
    source = str(save_gguf(tmp_path / "model.gguf", tiny_model()))
    recipe = replace(RECIPE, data=data, quantizer=quantizer)
    assert told(create(source, tmp_path / "there", recipe, streamed=True)) == told(
        create(source, tmp_path / "here", recipe)
    )


@pytest.mark.parametrize(("alike", "scaled"), [(0.0, True), (1e9, False)])
def test_whatever_the_gate_says_it_is_the_same(
    alike: float, scaled: bool, narrow: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales are folded in and solved codes rounded again, or neither: scales are judged by logarithms below 0."""
    monkeypatch.setattr("supernet.gate.ALIKE", alike)
    recipe = replace(RECIPE, data=data, bits=(2, 8))
    here, there = (create(narrow, tmp_path / str(way), recipe, streamed=way) for way in (False, True))
    assert told(there) == told(here)
    assert (SCALING in there.hashes) == scaled
    assert there.info["gate"]["solved codes"] == {"tried": 2, "returned": 2 if scaled else 0}


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_experts_are_streamed_one_by_one(kind: str, data: str, tmp_path: Path) -> None:
    """From tensors of their own under other names, and from one tensor of all."""
    source = save_tiny(tmp_path / "model", "mixtral")
    if kind == "gguf":
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        source = save_gguf(tmp_path / "model.gguf", model.requires_grad_(False))
    recipe = replace(RECIPE, data=data)
    here = create(str(source), tmp_path / "here", recipe)
    assert told(create(str(source), tmp_path / "there", recipe, streamed=True)) == told(here)


@pytest.mark.parametrize("stop", ["full model", "weigh tokens", "quantize 12", "evaluate"])
def test_a_start_that_was_killed_goes_on_from_there(
    stop: str, narrow: str, data: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    what, _, count = stop.partition(" ")
    what, count = (what, count) if count.isdigit() else (stop, "0")
    out, recipe = tmp_path / "net", replace(RECIPE, data=data)

    def interrupt(seen: str, done: int, total: int) -> None:
        if seen.startswith(what) and done >= int(count) and (done or what == "evaluate"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create(narrow, out, recipe, streamed=True, progress=interrupt)
    before = {path.name: path.stat().st_mtime_ns for path in (out / PREPARING).glob("codes-*")}
    assert (len(before) > 0) == (what in ("quantize", "evaluate"))
    with pytest.raises(InputError, match="holds a start that was stopped; go on with --resume"):
        create(narrow, out, recipe, streamed=True)
    written: dict[str, int] = {}

    stages: set[str] = set()

    def watch(seen: str, done: int, total: int) -> None:
        stages.add(seen)
        written.update({p.name: p.stat().st_mtime_ns for p in (out / PREPARING).glob("codes-*")})

    files = create(narrow, out, recipe, resume=True, progress=watch)
    assert told(files) == expected
    assert before.items() <= written.items()
    assert ("weigh tokens" in stages) == (what not in ("quantize", "evaluate"))  # no second way forward


@pytest.mark.parametrize("streamed", [True, False])
def test_a_finish_that_was_stopped_goes_on_either_way(
    streamed: bool, narrow: str, data: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    """By then the start is whole, and whether it was made from files is no matter."""
    out, recipe = tmp_path / "net", replace(RECIPE, data=data)

    def interrupt(seen: str, done: int, total: int) -> None:
        if seen.startswith("sensitivit"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create(narrow, out, recipe, streamed=True, progress=interrupt)
    assert not (out / PREPARING).exists()
    assert told(create(narrow, out, recipe, resume=True, streamed=streamed)) == expected


def test_a_killed_process_leaves_what_another_goes_on_from(
    narrow: str, data: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    out, recipe = tmp_path / "net", replace(RECIPE, data=data)
    arguments = [narrow, str(out), json.dumps(recipe.to_json())]
    work = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert work.stdout is not None
    for line in work.stdout:
        if line.startswith("quantize") and list((out / PREPARING).glob("codes-*")):
            os.kill(work.pid, signal.SIGKILL)
            break
    assert work.wait() == -signal.SIGKILL
    assert told(create(narrow, out, recipe, resume=True)) == expected


def test_going_on_is_with_the_same_model_and_options(narrow: str, data: str, tmp_path: Path) -> None:
    out, recipe = tmp_path / "net", replace(RECIPE, data=data)
    stopped(narrow, out, recipe)
    other = str(save_tiny(tmp_path / "other"))
    with pytest.raises(InputError, match="was begun from another model"):
        create(other, out, recipe, resume=True)
    with pytest.raises(InputError, match="--bits must be 2,4,8, as the training"):
        create(narrow, out, replace(recipe, bits=(2, 8)), resume=True, typed={"bits": "--bits"})


def stopped(source: str, out: Path, recipe: Recipe) -> None:
    """Stop a making in its second block."""

    def interrupt(seen: str, done: int, total: int) -> None:
        if seen.startswith("quantize") and done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create(source, out, recipe, streamed=True, progress=interrupt)


def test_going_on_is_with_the_same_weights(narrow: str, data: str, tmp_path: Path) -> None:
    """Blocks of two models, of one shape and in one place, would be one supernet."""
    model, out, recipe = tmp_path / "model", tmp_path / "net", replace(RECIPE, data=data)
    shutil.copytree(narrow, model)
    stopped(str(model), out, recipe)
    other = tiny_model("qwen2", seed=1, tie_word_embeddings=False, num_hidden_layers=3)
    other.to(torch.bfloat16).save_pretrained(model, max_shard_size="100KB")
    with pytest.raises(InputError, match=f"{out} was begun with other weights than {model} has now"):
        create(str(model), out, recipe, resume=True)


def test_whatever_file_of_a_start_is_cut_short_is_named(
    narrow: str, data: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    """Or nobody asks for it any more, and the supernet is the one that was begun."""
    begun, recipe = tmp_path / "begun", replace(RECIPE, data=data)
    stopped(narrow, begun, recipe)
    named = []
    for path in sorted((begun / PREPARING).iterdir()):
        out = tmp_path / path.stem
        shutil.copytree(begun, out)
        cut = out / PREPARING / path.name
        os.truncate(cut, cut.stat().st_size // 2)
        try:
            assert told(create(narrow, out, recipe, resume=True)) == expected
        except InputError as error:
            assert str(cut) in str(error) and "\n" not in str(error)
            named.append(path.name)
    assert {"counts.json", "prepared.json", "windows.safetensors", "codes-lm_head.safetensors"} <= set(named)
    assert [name for name in named if name.startswith("gradients")] == ["gradients-001.safetensors"]


@pytest.mark.parametrize("how", [Path.unlink, lambda path: os.truncate(path, 100)], ids=["gone", "cut"])
def test_a_shard_that_is_changed_meanwhile_is_named(
    how: Callable[[Path], object], narrow: str, data: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    model, out, recipe = tmp_path / "model", tmp_path / "net", replace(RECIPE, data=data)
    shutil.copytree(narrow, model)
    shard = model / "model-00002-of-00004.safetensors"

    def change(seen: str, done: int, total: int) -> None:
        if seen.startswith("plain rounding") and not done and shard.exists() and shard.stat().st_size > 100:
            how(shard)

    with pytest.raises(InputError, match=f"{shard} was changed while it was needed"):
        create(str(model), out, recipe, streamed=True, progress=change)
    shutil.copyfile(Path(narrow) / shard.name, shard)
    found = told(create(str(model), out, recipe, resume=True))
    assert found["hashes"] == expected["hashes"]


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ({"train_bits": None}, "--train-bits none"),
        ({"quantizer": "learned"}, "--quantizer gptq"),
        ({"data": None}, "--data FILE"),
        ({"prune": (0.5,)}, "no --prune"),
    ],
)
def test_what_needs_the_whole_model_is_refused_before_the_work(
    field: dict[str, Any], option: str, narrow: str, data: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"is quantized and not trained; use {option}"):
        create(narrow, tmp_path / "net", replace(RECIPE, **{"data": data, **field}), streamed=True)
    assert not (tmp_path / "net").exists()
