"""A runtime that another package brings: the documented example is found, held to the contract, and used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from planner.costs import Costs
from planner.package import write_package
from planner.request import Workload
from planner.runtimes import OWN
from planner.runtimes.outside import GROUP, members
from planner.testing.models import tiny_model
from planner.testing.supernets import RoundedSupernet
from supernet.space import Choice, Subnet
from tests.planner.packages import DEVICE, tiny_plan
from tests.warm import run

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "runtime"


def install(site: Path, name: str, points: dict[str, str]) -> None:
    """What an installer leaves of a package beside its modules."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{point} = {value}\n" for point, value in points.items()]
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "".join(lines))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The example, installed outside the project."""
    folder = tmp_path / "site"
    folder.mkdir()
    for path in EXAMPLE.glob("*.py"):
        shutil.copy(path, folder)
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    install(folder, project["name"], project["entry-points"][GROUP])
    return folder


def python(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    return run([sys.executable, *map(str, arguments)], env=environment, cwd=site)


@pytest.mark.long
def test_the_example_keeps_the_contract_from_outside(site: Path) -> None:
    done = python(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_halves.py")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and " skipped" not in done.stdout, done.stdout


def test_a_package_of_it_is_verified_and_answers(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line finds the runtime by what the installer left."""
    monkeypatch.syspath_prepend(str(site))
    from halves import Halves

    files, workload = RoundedSupernet(tiny_model(tmp_path / "model")), Workload(128, 1, 32)
    subnet = Subnet.of({unit.name: Choice(8, 32, "sym") for unit in files.spec.units})
    costs = Costs.of(Halves(), files.spec, workload, DEVICE, files.model_dir)
    plan = replace(
        tiny_plan(files, workload), runtime="halves", compared=(costs.compared("planned", "test", subnet, 0.1),),
        memory=costs.memory(subnet), latency=costs.latency(subnet),
    )  # fmt: skip
    write_package(Halves(), files, plan, tmp_path / "package")
    said = python(site, "-m", "cli", "verify", tmp_path / "package")
    assert said.returncode == 1, said.stdout + said.stderr
    assert "bitfleet runs halves here, but not as its devices do: transformers chat" in said.stdout
    (verdict,) = said.stdout.splitlines()[-1:]
    assert verdict.startswith("incomplete: peak memory, time per token could not be checked, all else holds")
    answered = python(site, "-m", "cli", "run", tmp_path / "package", "abc", "--max-tokens", 4)
    assert answered.returncode == 0, answered.stderr


BROKEN = {
    "missing": ("nowhere_to_be_found:Mine", "No module named 'nowhere_to_be_found'"),
    "raising": ("broken_runtimes_raise:Mine", "ZeroDivisionError, division by zero"),
    "leaving": ("broken_runtimes_leave:Mine", "SystemExit, 3"),
    "other": ("pathlib:Path", "is no planner.runtimes.base.Runtime"),
    "half": ("broken_runtimes:Half", "lacks holding, pricing, versions"),
    "another": ("halves:Halves", "calls itself 'halves'"),
    "mlx": ("halves:Halves", "the name is another runtime's"),
}


def test_what_is_broken_is_left_out_with_a_line(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "broken", {name: value for name, (value, _) in BROKEN.items()})
    (site / "broken_runtimes_raise.py").write_text("1 / 0\n")
    (site / "broken_runtimes_leave.py").write_text("raise SystemExit(3)\n")
    (site / "broken_runtimes.py").write_text(
        "from planner.runtimes.base import Runtime\nclass Half(Runtime):\n    name = 'half'\n"
    )
    monkeypatch.syspath_prepend(str(site))
    found, broken = members(OWN)
    assert found.keys() - {point.name for point in metadata.entry_points(group=GROUP)} == set()
    assert found["halves"].__name__ == "Halves" and broken.keys() == BROKEN.keys()
    for name, (_, reason) in BROKEN.items():
        line = broken[name]
        assert reason in line and "\n" not in line and line.startswith(f"the runtime {name} of broken 1.0 cannot"), line


def test_the_command_line_says_what_is_broken_and_works_without_it(site: Path) -> None:
    install(site, "broken", {"missing": BROKEN["missing"][0]})
    named = python(site, "-m", "cli", "profile", "device", "--runtime", "missing")
    assert named.returncode == 2 and named.stdout == "", named.stderr
    assert named.stderr.startswith("error: the runtime missing of broken 1.0 cannot be loaded: ModuleNotFoundError")
    code = "from planner.runtimes import RUNTIMES, installed; print(*RUNTIMES); print(installed().missing['missing']); "
    code += "from planner.doctor import runtimes; "
    code += "print(*[(row.name, row.status) for row in runtimes() if row.name.startswith('runtime ')])"
    (site / "installed.py").write_text(code)
    names, line, checks = python(site, "installed.py").stdout.splitlines()
    assert names.split() == [*OWN, "halves"] and line.endswith("mend or uninstall it")
    assert checks == "('runtime halves', 'PASS') ('runtime missing', 'WARN')"
