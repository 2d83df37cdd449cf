"""Scripts that are seldom run work with what there is."""

from __future__ import annotations

import ast
import importlib
import json
import runpy
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from supernet.create import create
from supernet.recipe import Recipe
from tests.tiny import save_tiny

ROOT = Path(__file__).resolve().parent.parent
OURS = ("cli", "commands", "planner", "profiles", "records", "supernet", "tests")


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_what_a_script_imports_of_the_project_is_there(script: str) -> None:
    for node in ast.walk(ast.parse((ROOT / "benchmarks" / script).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OURS:
            module = importlib.import_module(node.module)
            for alias in node.names:
                there = hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}") is not None
                assert there, f"{node.module} has no {alias.name}"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a script, whatever it finds, and returns what it says."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / "benchmarks" / name), run_name="__main__")
        assert left.value.code in (0, 1)  # 1: a claim does not hold, as may be on a tiny model
        return capsys.readouterr().out

    return run


def test_rivals_and_a_supernet_have_rows_of_the_same_averages(
    tmp_path: Path, script: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rival_tools.SAMPLES", 4)
    monkeypatch.setattr("rival_tools.TOKENS", 64)
    model, text, rivals = save_tiny(tmp_path / "model", max_position_embeddings=1024), tmp_path / "text", "rivals.json"
    text.mkdir()
    for name, times in (("train.txt", 5), ("eval.txt", 1)):
        (text / name).write_text((ROOT / "LICENSE").read_text() * times)
    data = str(text / "train.txt")
    recipe = Recipe((2, 3, 8), "int", group_size=64, quantizer="rtn", train_bits=(), window_tokens=16, data=data)
    create(str(model), tmp_path / "net", recipe)
    common = ("--text", text, "--windows", 1, "--averages", 2, 2.5)
    kept = ("--work", tmp_path / "work", "--out", tmp_path / rivals)
    script("rivals.py", *common, "--model", model, "--tools", "rtn", *kept)
    assert {row["average_bits"] for row in json.loads((tmp_path / rivals).read_text())["rows"]} == {2, 2.5, 3, 4}
    said = script("frontier.py", *common, "--supernet", tmp_path / "net", "--rivals", tmp_path / rivals)
    assert "2.5 bits: KL / that of round-to-nearest" in said
