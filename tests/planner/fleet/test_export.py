"""Packages in a folder: what is there by its content stays, what is not is written, whatever else lies there."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.fleet import export
from planner.fleet.export import at_once, check_folder, check_names, index_of, left_over, write_packages, write_sums
from planner.fleet.index import INDEX, SUMS
from planner.fleet.page import PAGE
from planner.fleet.plan import FleetPlan
from planner.package import MANIFEST, open_package
from profiles.catalog import load
from records.errors import InputError, SystemFailure
from records.lock import locked
from supernet.checkpoint import SupernetFiles
from tests.planner.fleet.trained import PI, planned, runtime_of, tiny_supernet, wanted

DATE = "1700000000"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SupernetFiles:
    return tiny_supernet(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def made(files: SupernetFiles) -> FleetPlan:
    return planned(files, wanted("kiosk", PI, disk=90_000), wanted("desk"), wanted("office", PI))


@pytest.fixture
def dist(files: SupernetFiles, made: FleetPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", DATE)
    monkeypatch.setattr(export, "workers", InThisProcess)
    write_packages(made, files, runtime_of, tmp_path / "dist")
    return tmp_path / "dist"


class InThisProcess:
    """A pool that does what it is given at once: starting processes that load torch takes most of the time."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, call: Any, *given: Any) -> Any:
        from concurrent.futures import Future

        done: Future[None] = Future()
        done.set_result(call(*given))
        return done


def state(dist: Path) -> dict[str, tuple[int, bytes]]:
    """The identity and bytes of every file but manifests' identity."""
    paths = [path for path in dist.rglob("*") if path.is_file()]
    return {str(p.relative_to(dist)): (0 if p.name == MANIFEST else p.stat().st_ino, p.read_bytes()) for p in paths}


@pytest.mark.usefixtures("warm_workers")
def test_in_processes_as_here(files: SupernetFiles, made: FleetPlan, dist: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.undo()
        from records.child import workers

        patch.setattr(export, "workers", workers)
        assert len(write_packages(made, files, runtime_of, tmp_path / "other")) == 2
    expected = {name: data for name, (_, data) in state(dist).items()}
    assert {name: data for name, (_, data) in state(tmp_path / "other").items()} == expected


def test_what_is_there_by_its_content_is_not_written_again(files: SupernetFiles, made: FleetPlan, dist: Path) -> None:
    before, names = state(dist), [package.name for package in made.packages]
    assert write_packages(made, files, runtime_of, dist) == ()
    assert state(dist) == before
    (dist / names[0] / "tokenizer.json").write_text("{}")
    assert write_packages(made, files, runtime_of, dist) == (names[0],)
    after = state(dist)
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
    kept = {name for name in after if after[name][0] == before[name][0]}
    assert kept >= {name for name in after if name.startswith(names[1])}


def test_another_runtime_or_supernet_is_other_content(
    files: SupernetFiles, made: FleetPlan, dist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dist / made.packages[0].name / MANIFEST
    manifest = json.loads(path.read_text())
    for change in ({"versions": {"onnxruntime": "0"}}, {"plan": {**manifest["plan"], "fingerprint": "0" * 16}}):
        path.write_text(json.dumps({**manifest, **change}))
        assert write_packages(made, files, runtime_of, dist) == (made.packages[0].name,)


def test_promises_change_in_the_manifest_alone(files: SupernetFiles, made: FleetPlan, dist: Path) -> None:
    before = state(dist)
    new = planned(
        files,
        wanted("kiosk", PI, disk=90_000),
        wanted("desk"),
        wanted("office", PI, memory=150_000_000),
        wanted("more"),
    )
    assert [p.name for p in new.packages] == [p.name for p in made.packages]
    assert write_packages(new, files, runtime_of, dist) == ()
    after = state(dist)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"{new.packages[1].name}/{MANIFEST}"}
    opened = open_package(dist / new.packages[1].name)
    assert opened.devices == ("desk", "more", "office")
    assert opened.promised_to("office").plan.budget.memory_bytes == 150_000_000
    opened.check(runtime_of("onnxruntime"))


def test_the_index_lists_what_was_written(files: SupernetFiles, made: FleetPlan, dist: Path) -> None:
    index = index_of(made, files, runtime_of, dist)
    assert [package.name for package in index.packages] == [package.name for package in made.packages]
    assert {slot.device for slot in index.slots} == {"kiosk", "desk", "office"}
    write_sums(index, dist)
    assert len((dist / SUMS).read_text().splitlines()) == len(state(dist)) - 1


def test_packages_that_are_no_longer_of_the_fleet_are_named_and_stay(
    files: SupernetFiles, made: FleetPlan, dist: Path
) -> None:
    fewer = planned(files, wanted("desk"))
    write_packages(fewer, files, runtime_of, dist)
    (dist / "notes").mkdir()
    assert left_over(index_of(fewer, files, runtime_of, dist), dist) == (made.packages[0].name,)
    assert (dist / made.packages[0].name / MANIFEST).exists()


def test_what_killed_runs_left_goes(files: SupernetFiles, made: FleetPlan, dist: Path) -> None:
    (dist / f".gone.tmp-{2**22 + 1}-0123abcd").mkdir()
    (dist / f".{made.packages[0].name}.lock").write_text("1\n")
    (dist / f".running.tmp-{os.getppid()}-0123abcd").mkdir()
    write_packages(made, files, runtime_of, dist)
    assert [path.name for path in dist.iterdir() if path.name.startswith(".")] == [
        f".running.tmp-{os.getppid()}-0123abcd"
    ]


def test_a_package_that_is_being_written_is_waited_for_or_refused(
    files: SupernetFiles, made: FleetPlan, dist: Path
) -> None:
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(dist / made.packages[1].name, "another export"):
            held.set()
            free.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(60)
    with pytest.raises(InputError, match="is at work in"):
        write_packages(made, files, runtime_of, dist)
    said: list[str] = []

    def waiting(line: str) -> None:
        said.append(line)
        threading.Timer(0.1, free.set).start()

    assert write_packages(made, files, runtime_of, dist, waiting=waiting) == ()
    other.join()
    assert len(said) == 1 and "waiting for it" in said[0]


def test_a_folder_of_something_else_is_refused_before_the_work(made: FleetPlan, tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    check_folder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="must be a folder or a free name"):
        check_folder(tmp_path / "file")
    (tmp_path / PAGE).write_text("a site")
    with pytest.raises(InputError, match=f"{PAGE} is of no export and would be replaced; give another --export"):
        check_folder(tmp_path)
    (tmp_path / INDEX).write_text('{"kind": "something"}')
    with pytest.raises(InputError, match=f"{INDEX} is of no export"):
        check_folder(tmp_path)
    (tmp_path / INDEX).write_text('{"kind": "bitfleet index"}')
    check_folder(tmp_path)
    (tmp_path / SUMS).mkdir()
    with pytest.raises(InputError, match="must be a regular file"):
        check_folder(tmp_path)
    name = made.packages[0].name
    (tmp_path / name).mkdir()
    check_names(made, tmp_path)
    (tmp_path / name / "mine").write_text("")
    with pytest.raises(InputError, match="is neither"):
        check_names(made, tmp_path)


def test_exports_at_once_are_what_the_memory_and_the_cores_allow() -> None:
    machine = replace(load(PI), threads=4, memory_bytes=8 * 10**9)
    assert at_once(10, 10**9, machine) == 3  # 8 GB of 2.2 each
    assert at_once(2, 10**6, machine) == 2
    assert at_once(10, 10**6, machine) == 4
    assert at_once(10, 10**12, machine) == 1
    assert at_once(10, 10**9, replace(machine, cgroup_limit_bytes=5 * 10**9)) == 2


def test_a_killed_writer_is_a_failure_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_export", os._exit)
    jobs: Any = [1]
    with pytest.raises(SystemFailure, match="was killed, .* memory runs out"):
        export._run(jobs, 1, lambda done: None)
