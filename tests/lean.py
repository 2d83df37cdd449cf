"""An environment like the one that `pip install bitfleet` makes: the wheel and what it needs, and no torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def build_wheel(folder: Path) -> Path:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("bitfleet-*.whl")
    return wheel


def lean_python(folder: Path) -> Path:
    """The interpreter of a new environment; packages are links to those installed here, so that it takes seconds."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True, timeout=60)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    zipfile.ZipFile(build_wheel(folder)).extractall(site)
    (info,) = site.glob("bitfleet-*.dist-info")
    declared = metadata.Distribution.at(info).requires or []
    for name in _closure(declared):
        _link(metadata.distribution(name), site)
    return folder / "env" / "bin" / "python"


def _closure(requirements: list[str]) -> list[str]:
    found: dict[str, None] = {}
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[name] = None
        waiting += [Requirement(line) for line in metadata.requires(requirement.name) or []]
    return list(found)


def _link(distribution: metadata.Distribution, site: Path) -> None:
    for top in sorted(_tops(distribution)):
        place = Path(str(distribution.locate_file(top)))
        if not (site / top).exists():
            os.symlink(place, site / top)


def _tops(distribution: metadata.Distribution) -> Iterator[str]:
    tops = {file.parts[0] for file in distribution.files or []}
    yield from (top for top in tops if top not in ("..", "__pycache__", "bin"))


def run_lean(python: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """One command of the installed wheel, isolated from this checkout."""
    line = [str(python), "-I", "-m", "cli", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=300)
