"""What a device needs: the wheel runs where torch and transformers are not installed, and says what needs them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from records.installed import TRAINING
from tests.lean import lean_python, run_lean


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lean_python(tmp_path_factory.mktemp("lean"))


def test_nothing_of_training_is_there(python: Path) -> None:
    code = "import sys; from importlib.util import find_spec; print([n for n in sys.argv[1:] if find_spec(n)])"
    done = subprocess.run([str(python), "-I", "-c", code, *TRAINING], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['safetensors']")  # what some serving library brings by itself


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["profile", "list"], ["doctor"]], ids=" ".join)
def test_commands_run(python: Path, tmp_path: Path, arguments: list[str]) -> None:
    done = run_lean(python, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_doctor_says_what_is_not_there_and_how_to_get_it(python: Path, tmp_path: Path) -> None:
    rows = {row["name"]: row for row in json.loads(run_lean(python, "doctor", "--json", cwd=tmp_path).stdout)["checks"]}
    assert (rows["torch"]["status"], rows["torch"]["fix"]) == ("WARN", "pip install 'bitfleet[train]'")
    assert rows["onnxruntime"]["status"] == rows["onnxruntime-genai"]["status"] == "PASS"


def test_training_says_what_to_install(python: Path, tmp_path: Path) -> None:
    done = run_lean(python, "train", "some-model", cwd=tmp_path)
    assert done.returncode == 4
    assert done.stderr == "error: this command needs torch; run: pip install 'bitfleet[train]'\n"
