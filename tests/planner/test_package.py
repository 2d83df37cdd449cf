"""Packages: written whole or not at all, opened with care, verified by measuring."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.package import MANIFEST, open_package, write_package
from planner.plan import Compared, Plan
from planner.runtimes.onnxruntime import export
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.verify import verify
from tests.planner.packages import RUNTIME, tiny_plan
from tests.planner.runtime_fixtures import RoundedModel, save_tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RoundedModel:
    return RoundedModel(save_tiny("llama", tmp_path_factory.mktemp("files") / "model"))


@pytest.fixture(scope="module")
def plan(files: RoundedModel) -> Plan:
    return tiny_plan(files)


@pytest.fixture
def package(files: RoundedModel, plan: Plan, tmp_path: Path) -> Path:
    return write_package(RUNTIME, files, plan, tmp_path / "package").path


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_package_round_trips(package: Path, plan: Plan) -> None:
    opened = open_package(package)
    opened.check(RUNTIME)
    assert opened.plan == plan
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= set(opened.files)
    assert leftovers(package.parent) == ["package"]


def test_an_older_package_is_replaced(files: RoundedModel, plan: Plan, package: Path) -> None:
    before = json.loads((package / MANIFEST).read_text())
    write_package(RUNTIME, files, plan, package)
    assert json.loads((package / MANIFEST).read_text())["files"] == before["files"]
    assert leftovers(package.parent) == ["package"]


def test_a_folder_with_something_else_is_refused(files: RoundedModel, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="new folder or over an older package"):
        write_package(RUNTIME, files, plan, tmp_path)
    assert leftovers(tmp_path) == ["mine.txt"]


def test_a_plan_for_other_weights_is_refused(files: RoundedModel, plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights that have changed"):
        write_package(RUNTIME, files, replace(plan, fingerprint="other"), tmp_path / "package")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_export_leaves_nothing(
    files: RoundedModel, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    real = export.quantized

    def broken(files: Any, name: str, *rest: Any) -> Iterator[Any]:
        if "layers.1" in name:
            raise error
        yield from real(files, name, *rest)

    monkeypatch.setattr(export, "quantized", broken)
    with pytest.raises(type(error)):
        write_package(RUNTIME, files, plan, tmp_path / "package")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda p: (p / "tokenizer.json").unlink(), FileNotFoundError, "lacks tokenizer.json"),
        (lambda p: (p / "model.onnx.data").open("r+b").write(b"x"), ValueError, "damaged"),
        (lambda p: (p / MANIFEST).write_text("{"), ValueError, "not JSON"),
        (lambda p: (p / MANIFEST).write_text("{}"), ValueError, "not a manifest"),
        (lambda p: (p / MANIFEST).unlink(), FileNotFoundError, "no package manifest"),
    ],
)
def test_damage_is_named(package: Path, damage: Any, kind: type[Exception], message: str) -> None:
    damage(package)
    with pytest.raises(kind, match=message):
        open_package(package).check(RUNTIME)


def test_no_package_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no package at"):
        open_package(tmp_path / "nothing")


def test_verify_measures_and_says_what_it_could_not_check(package: Path) -> None:
    rows = {row.name: row for row in verify(RUNTIME, package).rows}
    assert rows["weights on disk"].holds and rows["weights on disk"].promised == rows["weights on disk"].measured
    assert rows["peak memory"].measured and rows["peak memory"].measured > 2**25
    assert rows["time per token"].holds is None and "estimate" in rows["time per token"].note
    assert rows["KL to the supernet"].holds is None and "no supernet" in rows["KL to the supernet"].note


def test_a_broken_promise_is_reported(files: RoundedModel, plan: Plan, tmp_path: Path) -> None:
    chosen = plan.chosen
    small = Compared(**{**{k: getattr(chosen, k) for k in chosen.__dataclass_fields__}, "memory_bytes": 2**20})
    write_package(RUNTIME, files, replace(plan, compared=(small,)), tmp_path / "package")
    report = verify(RUNTIME, tmp_path / "package")
    assert not report.holds
    assert [row.name for row in report.rows if row.holds is False] == ["peak memory"]


class Disturbed(OnnxRuntime):
    """The real measurements, the first `disturbed` of them far too slow."""

    def __init__(self, disturbed: int) -> None:
        self.left = disturbed

    def measure(self, folder: Path, workload: Any) -> Any:
        found, self.left = super().measure(folder, workload), self.left - 1
        return replace(found, tpot_ms=1e6) if self.left >= 0 else found


@pytest.mark.parametrize(("disturbed", "holds"), [(1, True), (9, False)])
def test_a_promise_of_time_is_broken_only_if_it_is_broken_every_time(
    disturbed: int, holds: bool, files: RoundedModel, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.verify.PAUSE_S", 0.0)
    slow = replace(plan.chosen, ttft_ms=500.0, tpot_ms=100.0)
    sure = replace(plan, compared=(slow,), latency={**plan.latency, "basis": "measured"})
    write_package(RUNTIME, files, sure, tmp_path / "package")
    rows = {row.name: row for row in verify(Disturbed(disturbed), tmp_path / "package").rows}
    assert rows["time per token"].holds is holds
    assert rows["time per token"].note == f"the fastest of {2 if holds else 3} tries"


def test_run_streams_text(package: Path) -> None:
    assert isinstance("".join(RUNTIME.generate(package, "hello", 8)), str)
    with pytest.raises(ValueError, match="shorter than the package's context"):
        list(RUNTIME.generate(package, "hello " * 60, 8))
