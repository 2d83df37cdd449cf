"""A supernet, a plan and versions make one package: the same bytes in another process, on other vector units."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from planner.package import MANIFEST
from planner.plan import Plan
from supernet.checkpoint import SupernetFiles
from supernet.create import create
from supernet.recipe import Recipe
from supernet.space import Subnet
from tests.planner.packages import tiny_plan
from tests.planner.runtime_fixtures import VARIANTS, mixed, save_tiny

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Recipe(
    bits=(2, 4, 8), grid="int", group_size=32, quantizer="rtn", steps=1, batch=2, window_tokens=16, prune=(0.5, 0)
)
EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
# What other CPUs would compute with, as far as libraries can be told: torch, its products of both kinds, numpy, glibc.
OTHER_CPU = {
    "OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX2 FMA3",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F",
}  # fmt: skip
CASES = {"llama, pruned": "llama, yarn", "gemma3, linear": "gemma3, linear"}  # each is exported three times
EXPORT = """
import sys
from pathlib import Path
from planner.package import write_package
from planner.plan import Plan
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from supernet.checkpoint import open_supernet
folder, out = map(Path, sys.argv[1:])
for plan in sorted(folder.glob("*/plan.json")):
    write_package(OnnxRuntime(), open_supernet(plan.parent / "supernet"), Plan.load(plan), out / plan.parent.name)
"""


@dataclass(frozen=True)
class Made:
    """Folders of packages by case: here with one thread, elsewhere on another CPU, and here again another day, with the
    graphs that the first export put into the cache."""

    here: Path
    elsewhere: Path
    later: Path


def chosen(files: SupernetFiles, case: str) -> Subnet:
    """Mixed bits; where it is pruned, half a feed-forward block in one layer and none in the other."""
    subnet = mixed(files.spec)
    if not case.endswith("pruned"):
        return subnet
    for pair, kept in zip(files.spec.feed_forwards, (128, 0), strict=True):
        for unit in pair:
            some = [choice for choice in files.space[unit.name] if choice.kept == kept]
            subnet = subnet.replace(unit.name, some[-1])
    return subnet


def export(folder: Path, out: Path, home: Path, **variables: str) -> Path:
    home.mkdir(exist_ok=True)
    own = {"HOME": str(home), "BITFLEET_CACHE": str(home / "cache"), "TMPDIR": str(home), "PYTHONPATH": str(ROOT)}
    kept = {name: value for name, value in os.environ.items() if name not in (*OTHER_CPU, *EPOCH)}
    command = [sys.executable, "-c", EXPORT, str(folder), str(out)]
    done = subprocess.run(command, env=kept | own | variables, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("here")
    for case, variant in CASES.items():
        family, changes = VARIANTS[variant]
        prunes = RECIPE if case.endswith("pruned") else replace(RECIPE, prune=())
        model = save_tiny(family, folder / case / "model", **changes)
        files = create(str(model), folder / case / "supernet", prunes)
        plan = tiny_plan(files, subnet=chosen(files, case))
        replace(plan, search=({"solver": "HiGHS", "seconds": 0.1},), command=f"plan {folder}").save(
            folder / case / "plan.json"
        )
    moved = tmp_path_factory.mktemp("a quite different place") / "moved"
    shutil.copytree(folder, moved)
    for path in moved.glob("*/plan.json"):  # an equal plan, made there at another time
        plan = Plan.load(path)
        search = ({**plan.search[0], "seconds": 7.0},)
        replace(plan, supernet=str(moved), command="x", date="2027-01-01", search=search).save(path)
    out = tmp_path_factory.mktemp("packages")
    return Made(
        export(folder, out / "here", out / "one", OMP_NUM_THREADS="1", PYTHONHASHSEED="0", **EPOCH),
        export(moved, out / "elsewhere", out / "another", PYTHONHASHSEED="1", **EPOCH, **OTHER_CPU),
        export(folder, out / "later", out / "one", OMP_NUM_THREADS="1", PYTHONHASHSEED="2"),
    )


def contents(package: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(package.iterdir())}


@pytest.mark.parametrize("case", CASES)
def test_a_package_is_the_same_on_another_cpu(case: str, made: Made) -> None:
    ours, theirs = (contents(folder / case) for folder in (made.here, made.elsewhere))
    assert "proof.safetensors" in ours and ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.mark.parametrize("case", CASES)
def test_without_a_date_for_it_the_manifest_alone_has_another(case: str, made: Made) -> None:
    first, second = (contents(folder / case) for folder in (made.here, made.later))
    assert [name for name in first if first[name] != second[name]] == [MANIFEST]
    ours, theirs = (json.loads(content[MANIFEST]) for content in (first, second))
    assert ours["date"] == "2023-11-14T22:13:20+00:00" != theirs["date"]
    assert {**ours, "date": ""} == {**theirs, "date": ""}


@pytest.mark.parametrize("case", CASES)
def test_a_package_does_not_say_where_it_was_made(case: str, made: Made) -> None:
    """Nor when, beside the one date."""
    for content in contents(made.here / case).values():
        assert str(made.here.parent).encode() not in content and b"here0" not in content
    manifest: dict[str, Any] = json.loads((made.here / case / MANIFEST).read_text())
    assert manifest["launch"] == "bitfleet run . PROMPT"
    plan = Plan.from_json(manifest["plan"])
    assert plan == plan.portable() and (plan.supernet, plan.command, plan.date) == ("", "", "")
    assert plan.search == ({"solver": "HiGHS"},)
