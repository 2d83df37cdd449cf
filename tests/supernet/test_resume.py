"""A training that is stopped, killed or begun twice: nothing is lost, and it ends as if it had gone through."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from records.errors import InputError
from records.lock import locked
from records.signals import stoppable
from supernet.checkpoint import CODES, SCALING, START, STATE, SUPERNET, WINDOWS, open_supernet
from supernet.clock import Clock
from supernet.create import create
from supernet.files import read_tensors, write_tensors
from supernet.folder import begin
from supernet.recipe import Recipe
from supernet.stages.amounts import LEAST_TRIAL
from supernet.stages.trial import Trial
from supernet.train import Trainer
from supernet.work import Work
from tests.tiny import save_tiny

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
BASE = Recipe(bits=(2, 3, 8), group_size=16, quantizer="rtn", steps=6, batch=2, window_tokens=16)
PREPARED: dict[str, dict[str, Any]] = {  # every option that changes what training starts from
    "plain": {"awq": 0.0},
    "awq": {"awq": 0.5},
    "pruned": {"prune": (0.5, 0.0), "awq": 0.5},
    "gptq": {"quantizer": "gptq", "awq": 0.5},
    "learned": {"quantizer": "learned", "block_steps": 8, "awq": 0.5},
    "lora": {"adapter": "lora"},
    "pooled": {"adapter": "pooled", "grid": "int"},
    "rounding": {"adapter": "rounding", "awq": 0.5},
    "routed": {"adapter": "routed", "sharing": "shared"},
    "matched": {"sharing": "matched", "awq": 0.5},
    "shift": {"sampler": "shift", "awq": 0.5},
}


@pytest.fixture(scope="module", autouse=True)
def few_windows() -> Iterator[None]:
    """Adapters are tried on as many as where minutes are few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("supernet.stages.trial.TRIAL", LEAST_TRIAL)
        yield


class Stop:
    """Raises once, at the first step of `stage`'s that is at least `share` of it."""

    def __init__(self, stage: str, share: float = 0.0) -> None:
        self.stage, self.share = stage, share

    def __call__(self, what: str, done: int, total: int) -> None:
        if what.startswith(self.stage) and done >= self.share * total:
            raise KeyboardInterrupt


def run(source: str, out: Path, recipe: Recipe, stop: Stop | None = None, **options: Any) -> Any:
    if stop is None:
        return create(source, out, recipe, **options)
    with pytest.raises(KeyboardInterrupt):
        create(source, out, recipe, progress=stop, **options)
    return None


@pytest.mark.parametrize("options", PREPARED.values(), ids=PREPARED)
def test_losses_are_the_same_to_the_last_bit_whoever_trained(
    options: dict[str, Any], source: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, after, within = replace(BASE, data=data, **options), tmp_path / "after training", tmp_path / "within"
    go_on = Trial.run

    def left_by_a_kill(stage: Trial, work: Work) -> None:
        shutil.copytree(work.out, after)
        go_on(stage, work)

    with monkeypatch.context() as patched:
        patched.setattr(Trial, "run", left_by_a_kill)
        whole = run(source, tmp_path / "whole", recipe)
    run(source, within, recipe, Stop("train", 0.5))
    for out in (after, within):
        assert not open_supernet(out, unfinished=True).finished
        resumed = run(source, out, recipe, resume=True)
        assert resumed.info["losses"] == whole.info["losses"]
        assert resumed.hashes == whole.hashes
        assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.path.iterdir())


def test_a_start_that_was_stopped_before_its_index_is_begun_again(source: str, data: str, tmp_path: Path) -> None:
    """Whatever it left: what an earlier recipe did to the model is not done to this one's."""
    out = tmp_path / "net"
    begin(out, {})
    write_tensors(out / SCALING, {"model.norm|makes": torch.full((64,), 2.0)})
    (out / START).write_bytes(b"half")
    (out / f".{WINDOWS}.tmp-1-00000000").write_bytes(b"half")
    recipe = replace(BASE, data=data, awq=0.0)
    files = run(source, out, recipe)
    assert files.finished
    assert not (out / SCALING).exists()
    assert files.hashes == run(source, tmp_path / "clean", recipe).hashes


def test_a_stage_file_that_the_index_does_not_name_is_not_used(source: str, data: str, tmp_path: Path) -> None:
    recipe = replace(BASE, data=data, awq=0.0)
    whole = run(source, tmp_path / "whole", recipe)
    out = tmp_path / "net"
    run(source, out, recipe, Stop("train", 0.5))
    write_tensors(out / SCALING, {"model.norm|makes": torch.full((64,), 2.0)})
    assert run(source, out, recipe, resume=True).hashes == whole.hashes


@pytest.mark.parametrize("name", [WINDOWS, START, "model/config.json", "model/tokenizer.json"])
def test_a_stage_file_that_changed_is_refused(name: str, source: str, data: str, tmp_path: Path) -> None:
    out = tmp_path / "net"
    recipe = replace(BASE, data=data)
    run(source, out, recipe, Stop("train"))
    content = (out / name).read_bytes()
    (out / name).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(InputError, match="is damaged or was changed after training"):
        create(source, out, recipe, resume=True)


def test_a_folder_of_someone_else_is_not_a_start(source: str, data: str, tmp_path: Path) -> None:
    for name, text in ((START, "mine"), (STATE, "{}")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="is in use and holds no supernet"):
            create(source, tmp_path, replace(BASE, data=data))
        assert (tmp_path / name).read_text() == text


def test_a_typed_recipe_must_be_the_stored_one(source: str, data: str, tmp_path: Path) -> None:
    out, recipe = tmp_path / "net", replace(BASE, data=data)
    run(source, out, recipe, Stop("train"))
    for change, option, told in (
        ({"bits": (2, 8)}, "--bits", "--bits must be 2,3,8, as .* got 2,8; leave it out, or train into a new --out"),
        ({"seed": 3}, "--seed", "--seed must be 0, as .* got 3"),
        ({"sampler": "uniform"}, "--sampler", "--sampler must be balanced, as .* got uniform"),
    ):
        with pytest.raises(InputError, match=told):
            create(source, out, replace(recipe, **change), resume=True, typed={next(iter(change)): option})
    typed = {"bits": "--bits", "sampler": "--sampler", "data": "--data"}
    assert create(source, out, recipe, resume=True, typed=typed).finished


def test_the_minutes_are_those_that_it_was_begun_with(
    source: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a resumed run says of them: given steps are given for good, and then no stage is shortened."""
    out, recipe = tmp_path / "net", replace(BASE, data=data)
    run(source, out, recipe, Stop("train"))
    asked: list[float | None] = []

    def clock(minutes: float | None) -> Clock:
        asked.append(minutes)
        return Clock(minutes)

    monkeypatch.setattr("supernet.create.Clock", clock)
    assert create(source, out, replace(recipe, steps=None, minutes=0.1), resume=True).finished
    assert asked == [None]


def test_a_model_may_move_but_not_change(source: str, data: str, tmp_path: Path, monkeypatch: Any) -> None:
    model = shutil.copytree(source, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    recipe = replace(BASE, data=os.path.relpath(data))
    run("model", Path("net"), recipe, Stop("train"))
    info = open_supernet("net", unfinished=True).info
    assert (info["source"], info["recipe"]["data"]) == (str(model.resolve()), str(Path(data).resolve()))
    (tmp_path / "net").rename(tmp_path / "moved")
    model.rename(tmp_path / "elsewhere")
    other = save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="was begun from another model, .* give the same model"):
        create(str(other), tmp_path / "moved", recipe, resume=True)
    monkeypatch.chdir(ROOT)
    assert create(str(tmp_path / "elsewhere"), tmp_path / "moved", recipe, resume=True).finished


def test_a_second_training_is_refused_at_once_or_waits(source: str, data: str, tmp_path: Path) -> None:
    out, recipe = tmp_path / "net", replace(BASE, data=data)
    with locked(out, "another training"):
        with pytest.raises(InputError, match=rf"another training is at work in {out} \(process {os.getpid()}\)"):
            create(source, out, recipe)
        assert not out.exists()
    code = "import sys; from pathlib import Path; from records.lock import locked\n"
    code += "with locked(Path(sys.argv[1]), 'another training'): print('held', flush=True); input()\n"
    line = [sys.executable, "-c", code, str(out)]
    holder = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdin is not None and holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    said: list[str] = []

    def waiting(line: str) -> None:
        said.append(line)
        holder.communicate("\n")  # which lets it end

    assert create(source, out, recipe, waiting=waiting).finished
    assert holder.returncode == 0
    assert said == [f"another training is at work in {out} (process {holder.pid}); waiting for it"]
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_who_waited_takes_what_was_made(source: str, data: str, tmp_path: Path) -> None:
    out, recipe = tmp_path / "net", replace(BASE, data=data)
    made = run(source, tmp_path / "made", recipe)

    def waiting(line: str) -> None:
        shutil.copytree(made.path, out)
        lock.__exit__(None, None, None)

    lock = locked(out, "another training")
    lock.__enter__()
    assert create("no such model", out, recipe, waiting=waiting).hashes == made.hashes
    assert create("no such model", out, recipe, resume=True, waiting=waiting).hashes == made.hashes  # finished by now


def test_a_signal_while_a_step_leaves_the_numbers_keeps_the_last_checkpoint(
    source: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Trainer._check_finite

    def overflowing(self: Trainer, step: int, values: Any) -> None:
        values, moved = list(values), next(iter(self.parameters.values()))
        if any(value is moved for value in values):  # after the optimizer's step, where a signal waits
            moved.data.fill_(torch.inf)
            signal.raise_signal(signal.SIGTERM)
        check(self, step, values)

    monkeypatch.setattr(Trainer, "_check_finite", overflowing)
    with stoppable(), pytest.raises(InputError, match="step 1 is not finite"):
        create(source, tmp_path / "net", replace(BASE, data=data, adapter="lora"))
    tensors, meta = read_tensors(tmp_path / "net" / "training.safetensors")
    assert all(value.isfinite().all() for value in tensors.values())
    assert meta["history"] == []


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(source: str, data: str, tmp_path: Path) -> None:
    out = tmp_path / "net"
    recipe = replace(BASE, data=data, adapter="lora", learning_rate=1e30, steps=40)
    with pytest.raises(InputError, match=r"not finite at the learning rate 1e\+30; .* --learning-rate, such as 1e\+29"):
        create(source, out, recipe)
    tensors, meta = read_tensors(out / "training.safetensors")
    assert all(value.isfinite().all() for value in tensors.values())
    assert meta["history"] == []
    assert not (out / CODES).exists()
    assert (out / SUPERNET).exists()


def test_config_and_tokenizer_are_under_the_hashes(source: str, data: str, tmp_path: Path) -> None:
    files = run(source, tmp_path / "net", replace(BASE, data=data, steps=1))
    config = files.path / "model" / "config.json"
    text = config.read_text()
    config.write_text(json.dumps(json.loads(text) | {"rms_norm_eps": 0.5}))
    with pytest.raises(InputError, match=r"config\.json is damaged or was changed after training"):
        open_supernet(files.path)
    config.write_text(text)
    (files.path / "model" / "chat_template.jinja").write_text("{{ 1 }}")
    with pytest.raises(InputError, match=r"chat_template\.jinja is not of this supernet"):
        open_supernet(files.path)
