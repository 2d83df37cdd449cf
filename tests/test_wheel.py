"""The wheel holds everything that runs, and runs outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.lean import build_wheel

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(folder)
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def _python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, timeout=120)


def test_every_source_and_data_file_is_inside(unpacked: Path) -> None:
    packages = ("commands", "planner", "profiles", "records", "supernet")
    wanted = {
        path.relative_to(ROOT)
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".json", ".txt", ".html")
    }
    missing = {path for path in wanted if not (unpacked / path).is_file()}
    assert not missing
    assert len(list((unpacked / "profiles" / "catalog").glob("*.json"))) >= 12
    assert (unpacked / "cli.py").is_file()


def test_nothing_else_is_inside(unpacked: Path) -> None:
    tops = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"cli.py", "commands", "planner", "profiles", "records", "supernet"}


def test_it_imports_from_the_wheel_and_not_from_the_checkout(unpacked: Path) -> None:
    code = "import cli, planner as p, profiles as q, supernet as s; print(*(m.__spec__.origin for m in (cli, p, q, s)))"
    done = _python(unpacked, "-c", code)
    assert done.returncode == 0, done.stderr
    assert all(Path(place).is_relative_to(unpacked) for place in done.stdout.split())


@pytest.mark.parametrize("arguments", [["--version"], ["profile", "list"], ["doctor"]], ids=" ".join)
def test_commands_run_from_the_wheel(unpacked: Path, arguments: list[str]) -> None:
    done = _python(unpacked, "-m", "cli", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_and_the_license_are_declared(unpacked: Path) -> None:
    (info,) = unpacked.glob("bitfleet-*.dist-info")
    assert "bitfleet = cli:main" in (info / "entry_points.txt").read_text("utf-8")
    assert "Apache License" in (info / "licenses" / "LICENSE").read_text("utf-8")
