"""A package for llama.cpp from a plan to its proof: written, checked, held to what was promised, changed by a delta."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from planner.answers import from_proof
from planner.costs import Costs
from planner.delta import apply_delta, write_delta
from planner.package import Package, open_package, write_package
from planner.plan import Plan
from planner.probes import check_probes
from planner.request import Workload
from planner.rows import BROKEN
from planner.runtimes.llamacpp.runtime import LlamaCpp
from records.errors import InputError
from supernet.space import Choice, Subnet
from tests.planner.llamacpp.models import GridModel, made, mixed
from tests.planner.packages import DEVICE, tiny_plan

pytest.importorskip("xllamacpp", reason="runs the pinned build of llama.cpp; pip install 'bitfleet[llamacpp]'")

RUNTIME = LlamaCpp()
WORKLOAD = Workload(128, 1, 32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> GridModel:
    return made("llama", tmp_path_factory.mktemp("files") / "model")


def plan_of(files: GridModel, subnet: Subnet) -> Plan:
    costs = Costs.of(RUNTIME, files.spec, WORKLOAD, DEVICE, files.model_dir)
    plain = tiny_plan(files, WORKLOAD, mixed(files.spec, "int4g32"))
    return replace(
        plain, runtime=RUNTIME.name, compared=(costs.compared("planned", "test", subnet, 0.1),),
        memory=costs.memory(subnet), latency=costs.latency(subnet),
    )  # fmt: skip


@pytest.fixture(scope="module")
def package(files: GridModel, tmp_path_factory: pytest.TempPathFactory) -> Package:
    plan = plan_of(files, mixed(files.spec, "sym3g32", "int2g64", "sym4g32", "sym8g32"))
    return write_package(RUNTIME, files, plan, tmp_path_factory.mktemp("package") / "package")


def test_a_package_is_what_its_plan_and_its_proof_say(package: Package) -> None:
    package.check(RUNTIME)
    assert package.files["model.gguf"].bytes == package.plan.chosen.disk_bytes
    rows = [*from_proof(RUNTIME, package), *check_probes(RUNTIME, package.path, True)]
    assert len(rows) > 4 and all(row.verdict != BROKEN for row in rows), rows


def test_a_package_whose_weights_changed_is_refused(package: Package, tmp_path: Path) -> None:
    copied = tmp_path / "package"
    shutil.copytree(package.path, copied)
    weights = copied / "model.gguf"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        open_package(copied).check(RUNTIME)


def test_a_delta_carries_the_tensors_that_changed(package: Package, files: GridModel, tmp_path: Path) -> None:
    unit = next(unit for unit in files.spec.units if unit.role == "down")
    plan = plan_of(files, package.plan.subnet.replace(unit.name, Choice(4, 32, "sym")))
    new = write_package(RUNTIME, files, plan, tmp_path / "new")
    delta = write_delta(RUNTIME, package, new, tmp_path / "delta")
    assert [name for name in delta.changed if "weight" in name] == ["blk.0.ffn_down.weight"]
    applied = apply_delta(package.path, delta.path, tmp_path / "applied")
    assert {n: e.sha256 for n, e in applied.files.items()} == {n: e.sha256 for n, e in new.files.items()}
