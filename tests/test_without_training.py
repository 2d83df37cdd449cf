"""What a device needs: the wheel runs where torch and transformers are not installed, and says what needs them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from planner.package import Package
from records.installed import TRAINING
from tests.lean import lean_python, run_lean
from tests.planner.packages import tiny_package


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lean_python(tmp_path_factory.mktemp("lean"))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tiny_package(tmp_path_factory.mktemp("package"))


def test_nothing_of_training_is_there(python: Path) -> None:
    code = "import sys; from importlib.util import find_spec; print([n for n in sys.argv[1:] if find_spec(n)])"
    done = subprocess.run([str(python), "-I", "-c", code, *TRAINING], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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


def test_a_package_is_verified_and_answers(python: Path, package: Package, tmp_path: Path) -> None:
    done = run_lean(python, "verify", package.path, "--json", cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    for name in ("files", "weights on disk", "KL to the supernet"):
        assert rows[name]["verdict"] == "holds", rows
    for option in ("--supernet", "--against"):
        done = run_lean(python, "verify", package.path, option, "some-model", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (4, "")  # before anything is measured
        assert done.stderr == "error: this command needs torch; run: pip install 'bitfleet[train]'\n"
    answered = run_lean(python, "run", package.path, "abc", "--max-tokens", 4, cwd=tmp_path)
    assert answered.returncode == 0, answered.stderr


def test_the_machine_is_measured(python: Path, tmp_path: Path) -> None:
    """As `profile device` does it: packages of random codes, served in processes of their own."""
    code = """if True:
        from pathlib import Path
        from planner.runtimes.onnxruntime import fresh, random_package
        from planner.runtimes.shapes import Shape
        from supernet.space import Choice, Subnet
        shape = Shape("tiny", 2, 64, 128, 4, 2, 16, 320)
        subnet = Subnet.of({unit.name: Choice(4, 32) for unit in shape.spec().units})
        found = fresh.measure(random_package.write(shape, subnet, 128, 1, Path("package")), 16, 128, new_tokens=4)
        assert 0 < found.tpot_ms and 0 < found.loaded_bytes <= found.peak_bytes
    """
    done = subprocess.run([str(python), "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
