"""Stages of making a supernet: each is told from the folder alone, and goes on to the same bits wherever it stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from records.errors import InputError
from supernet.checkpoint import SupernetFiles
from supernet.create import create
from supernet.recipe import Recipe
from supernet.stages import STAGES
from tests.tiny import save_tiny

pytestmark = pytest.mark.long

RECIPE = Recipe(bits=(2, 3, 8), group_size=32, quantizer="gptq", steps=4, batch=2, window_tokens=16)
NAMES = [stage.name for stage in STAGES]
WITHIN = {
    "prepare": "plain rounding",
    "codes": "quantize",
    "train": "train",
    "trial": "try adapters",
    "measure": "sensitivities",
}
"""What is said in the middle of a stage."""


def told(files: SupernetFiles) -> dict[str, Any]:
    """All that a folder holds, but for when it was made."""
    table = json.loads((files.path / "sensitivity.json").read_text())
    info = {key: value for key, value in files.info.items() if key != "date"}
    names = sorted(path.name for path in files.path.iterdir())
    return {"hashes": dict(files.hashes), "info": info, "sensitivities": table["units"], "names": names}


@pytest.fixture(scope="module")
def whole(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of text that the model wrote, with everything that a run hands on."""
    return told(create(source, tmp_path_factory.mktemp("whole") / "net", RECIPE))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that run."""
    names: list[str] = []

    def told_of(begin: Any) -> Any:
        def run(self: Any, work: Any) -> None:
            names.append(self.name)
            begin(self, work)

        return run

    for stage in STAGES:
        monkeypatch.setattr(type(stage), "run", told_of(type(stage).run))
    return names


def stopped(source: str, out: Path, stage: str, within: bool) -> None:
    """A making that ends where `stage` begins, or is in the middle of its work."""

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith(WITHIN[stage]) and done and done >= total / 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if not within:
            patched.setattr(type(STAGES[NAMES.index(stage)]), "run", lambda *_: interrupt(WITHIN[stage], 1, 1))
        create(source, out, RECIPE, progress=interrupt)


def test_every_stage_has_a_middle_that_is_tested() -> None:
    assert list(WITHIN) == NAMES == list(dict.fromkeys(NAMES))


@pytest.mark.parametrize("within", [False, True], ids=["at its begin", "in its middle"])
@pytest.mark.parametrize("stage", NAMES)
def test_a_run_goes_on_with_the_stage_that_it_was_stopped_in(
    stage: str, within: bool, source: str, whole: dict[str, Any], ran: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "net"
    stopped(source, out, stage, within)
    number = NAMES.index(stage)
    assert [one.done(out) for one in STAGES[number:]] == [False] * len(STAGES[number:])
    assert number == 0 or STAGES[number - 1].done(out)
    ran.clear()
    said: list[str] = []
    files = create(source, out, RECIPE, resume=True, progress=lambda what, done, total: said.append(what))
    assert told(files) == whole
    assert ran == NAMES[number:]
    assert ("sample text" in said) == (stage == "prepare" and not within)


def test_a_start_is_gone_on_with_by_the_same_weights_alone(source: str, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "net"
    shutil.copytree(source, model)
    stopped(str(model), out, "codes", within=False)
    with pytest.raises(InputError, match="holds a start that was stopped; go on with --resume"):
        create(str(model), out, RECIPE)
    save_tiny(model, seed=1)
    with pytest.raises(InputError, match="was begun with other weights than .* has now; put those back"):
        create(str(model), out, RECIPE, resume=True)
