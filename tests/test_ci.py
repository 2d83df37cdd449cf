"""The CI example, as a person copies it: from an empty folder to an export, killed and gone on with."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from cli import cli
from tests.planner.runtime_fixtures import save_tiny

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parent.parent
CI = ROOT / "examples" / "ci"
WORKFLOW = CI / ".github" / "workflows" / "export.yml"
TRAIN = "--bits 2,4,8 --group-size 32 --quantizer rtn --steps 2 --data text.txt"
FLEET = """
[defaults]
runtime = "onnxruntime"
context = 128
prompt-tokens = 64
mem = "200MB"
[[device]]
name = "kiosk"
device = "raspberry-pi-5-8gb"
disk = "90KB"
[[device]]
name = "desk"
device = "desktop-ryzen-5600-16gb"
[[device]]
name = "office"
device = "laptop-i5-1240p-8gb"
"""
Line = tuple[int, str, str]  # exit code, stdout, stderr


class Project:
    """A folder with a model, a fleet file and the script, and what a CI sets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        command = folder / "bin" / "bitfleet"  # as `pip install` would make it
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "cli.py"}" "$@"\n')
        command.chmod(0o755)
        save_tiny("llama", folder / "model")
        shutil.copyfile(ROOT / "LICENSE", folder / "text.txt")
        (folder / "fleet.toml").write_text(FLEET)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        wanted = {"PATH": path, "MODEL": "model", "TRAIN": TRAIN, "VERIFY": "", "SOURCE_DATE_EPOCH": "1700000000"}
        return subprocess.Popen(
            [CI / "export.sh"], cwd=self.folder, env={**os.environ, **wanted, **variables}, text=True,
            stdout=(self.folder / "out").open("w"), stderr=(self.folder / "err").open("w"), start_new_session=True,
        )  # fmt: skip

    def run(self, **variables: str) -> Line:
        return self.end(self.start(**variables))

    def end(self, process: subprocess.Popen[str]) -> Line:
        code = process.wait(timeout=300)
        return code, (self.folder / "out").read_text(), (self.folder / "err").read_text()

    def said(self, process: subprocess.Popen[str], what: str) -> None:
        """Wait until the run says `what`."""
        while what not in (self.folder / "err").read_text():
            assert process.poll() is None, (self.folder / "err").read_text()
            time.sleep(0.01)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("ci"))


@pytest.fixture(scope="module")
def exported(project: Project) -> Iterator[tuple[Path, float]]:
    """What the script makes in a folder where nothing is yet, and how long the export itself took."""
    process = project.start()
    project.said(process, "exporting, 0 of 2")
    began = time.monotonic()
    code, out, err = project.end(process)
    assert code == 0, err
    assert "no baseline" in err and "wrote 2 packages, 0 were there" in err and "2 packages for 3 devices" in out
    return project.folder / "dist", time.monotonic() - began  # type: ignore[return-value]


def test_the_script_exports_what_can_be_checked(exported: tuple[Path, float]) -> None:
    dist, _ = exported
    index = json.loads((dist / "index.json").read_text())
    assert index["date"] == "2023-11-14T22:13:20+00:00"
    assert [device["name"] for device in index["devices"]] == ["kiosk", "desk", "office"]
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=dist, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK\n") == sum(len(p["files"]) + 1 for p in index["packages"])
    page = (dist / "index.html").read_text()
    assert all(package["name"] in page for package in index["packages"])
    assert left_over(dist) == []


def test_again_nothing_is_built_and_a_tighter_baseline_fails(project: Project, exported: tuple[Path, float]) -> None:
    dist, _ = exported
    before = contents(dist)
    index = json.loads((dist / "index.json").read_text())
    index["devices"][0]["memory_bytes"] //= 2
    (project.folder / "baseline.json").write_text(json.dumps(index))
    code, out, err = project.run(VERIFY="--verify", BASELINE="baseline.json")
    assert "wrote 0 packages, 2 were there" in err and "load libraries" not in err  # nor is anything trained
    assert code == 1, err
    assert re.search(r"^kiosk: bigger, memory .*, \+\d+\.\d%, allowed \+2%$", out, re.MULTILINE)
    after = contents(dist)
    assert {n: b for n, b in after.items() if "/" in n} == {n: b for n, b in before.items() if "/" in n}
    slots = json.loads(after["index.json"])["slots"]
    assert all(slot["measured"] is not None for slot in slots) and not any(slot["receipt"]["broken"] for slot in slots)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: str(number.name))
def test_a_killed_export_goes_on_to_the_same_bytes(
    project: Project, exported: tuple[Path, float], number: signal.Signals
) -> None:
    whole, seconds = exported
    dist = project.folder / number.name
    process = project.start(DIST=dist.name)
    project.said(process, "exporting, 0 of 2")
    after_s = random.uniform(0, seconds)
    time.sleep(after_s)
    process.send_signal(number)
    code, _, err = project.end(process)
    if number == signal.SIGTERM and code != 0:  # 0: it was done
        assert code == 143 and err.splitlines()[-1].startswith("error: terminated"), err
        assert left_over(dist) == []
        ended = time.monotonic() + 10  # what looks after shared memory ends by itself, once it is alone
        while members(process.pid) and time.monotonic() < ended:
            time.sleep(0.1)
        assert not members(process.pid)
    code, _, err = project.run(DIST=dist.name)
    assert code == 0, err
    assert left_over(dist) == []
    made, expected = contents(dist), contents(whole)
    expected["index.json"], made["index.json"] = promised(expected["index.json"]), promised(made["index.json"])
    del made["index.html"], expected["index.html"]  # shows what was measured of the other
    assert made == expected, f"killed after {after_s:.3f} s"


def contents(dist: Path) -> dict[str, bytes]:
    return {str(path.relative_to(dist)): path.read_bytes() for path in dist.rglob("*") if path.is_file()}


def promised(index: bytes) -> bytes:
    """Without what was measured, and without a baseline."""
    data = json.loads(index)
    slots = [{**slot, "measured": None, "receipt": None} for slot in data["slots"]]
    return json.dumps({**data, "slots": slots, "differences": []}).encode()


def left_over(dist: Path) -> list[str]:
    return [path.name for path in dist.iterdir() if path.name.startswith(".")] if dist.exists() else []


def members(session: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, _, _, its = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its) == session and state != "Z":
            found.append(int(name))
    return found


# --- what the examples name is there ------------------------------------------------------------------------------


def test_the_workflow_is_one_that_can_be_read() -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert set(workflow["jobs"]) == {"export", "accept"}
    export, accept = (workflow["jobs"][name]["steps"] for name in ("export", "accept"))
    (cache,) = [step for step in export if step.get("uses", "").startswith("actions/cache@")]
    assert cache["with"]["path"] == workflow["env"]["SUPERNET"]
    for name in ("MODEL", "MINUTES", "TRAIN"):
        assert name in workflow["env"] and f"env.{name}" in cache["with"]["key"]
        assert f"{name}=${{{name}:-" in (CI / "export.sh").read_text()
    uploads = [
        s["with"]["path"] for s in (*export, *accept) if s.get("uses", "").startswith("actions/upload-artifact@")
    ]
    assert uploads and set(uploads) == {workflow["env"]["DIST"]}
    for step in (*export, *accept):
        if "run" in step:
            done = subprocess.run(["bash", "-n"], input=step["run"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [CI / "export.sh", WORKFLOW, ROOT / "Makefile"], ids=lambda path: str(path.name))
def test_every_command_and_option_that_is_used_exists(path: Path) -> None:
    used = list(invocations(path.read_text()))
    assert used
    for words in used:
        command: Any = cli
        while isinstance(command, click.Group):
            name = words.pop(0) if words and words[0] in command.commands else ""
            command = command.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, path.name


def invocations(text: str) -> Iterator[list[str]]:
    """The words after each `bitfleet` that is called, up to the end of its line."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        found = re.search(
            r"(?:^|exec |\s)(?:\$\(BIN\)/)?bitfleet ((?:train|plan|fleet|export|verify|profile|run)\b.*)", line
        )
        if found and not line.lstrip().startswith(("#", "echo")):
            yield re.findall(r"--[a-z][a-z-]*|[a-z]+(?=\s|$)|\S+", found[1])


def test_the_fleet_of_the_example_can_be_read() -> None:
    from planner.fleet.fleetfile import read_fleet

    assert len(read_fleet(CI / "fleet.toml").devices) >= 3
