"""What a command writes replaces an older file of its kind, and nothing else, whatever was typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from commands.outputs import PAGE, PLAN, PROFILE, RECEIPT, check_file
from planner.plan import Plan
from profiles.catalog import load
from records.errors import InputError
from tests.planner.test_card import receipt

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import fuzz_readers

ANCHOR = ("profile", "anchor", "rtx-3060-12gb", "--figure", "Q4_K_M,4.92GB,8.03B,46.2", "--out")
WRITERS: dict[str, tuple[str, ...]] = {
    "plan": ("plan", "net", "--mem", "1GB", "--out"),
    "its page": ("plan", "net", "--mem", "1GB", "--out", "new.json", "--html"),
    "profile": ("profile", "device", "--quick", "--out"),
    "anchor": ANCHOR,
    "page": ("show", "plan.json", "--html"),
    "receipt": ("verify", "p", "--receipt"),
    "fleet": ("fleet", "fleet.toml", "--export", "dist", "--html"),
}
PRECIOUS = {
    "supernet.json": b'{"kind": "bitfleet supernet"}',
    "fleet.toml": b'[[device]]\ndevice = "this-machine"\n',
    "train.txt": b"once upon a time",
    "model.gguf": b"GGUF\x03\x00\x00\x00",
    "other.json": b"[]",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a plan, the package `p`, and a fleet file."""
    monkeypatch.chdir(tmp_path)
    fuzz_readers.delta(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(fuzz_readers.plan_json()))
    (tmp_path / "fleet.toml").write_bytes(PRECIOUS["fleet.toml"])
    return tmp_path


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_else_is_replaced(bitfleet: Any, place: Path, writer: str) -> None:
    own = [] if writer in ("plan", "profile", "anchor") else ["plan.json"]  # a page over its plan
    for name in [*PRECIOUS, *own]:
        path = place / name
        before = path.read_bytes() if name in own else PRECIOUS[name]
        path.write_bytes(before)
        done = bitfleet(*WRITERS[writer], path)
        assert done.code == 2 and "holds something else, which would be lost; give another --" in done.error
        assert path.read_bytes() == before


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_put_into_a_package(bitfleet: Any, place: Path, writer: str) -> None:
    before = {path: path.read_bytes() for path in (place / "p").iterdir()}
    done = bitfleet(*WRITERS[writer], place / "p" / "more")
    assert done.code == 2 and "would be a file of a package" in done.error
    assert {path: path.read_bytes() for path in (place / "p").iterdir()} == before


def test_a_plan_and_its_page_are_two_files(bitfleet: Any, place: Path) -> None:
    done = bitfleet("plan", "net", "--mem", "1GB", "--out", "new", "--html", place / "new")
    assert done.code == 2 and "--out and --html must be two files" in done.error


def test_an_older_one_is_replaced(bitfleet: Any, place: Path) -> None:
    made = Plan.load(place / "plan.json")
    made.save(place / "saved.json")
    receipt(made).save(place / "r.json")
    load("rtx-3060-12gb").save(place / "d.json")
    assert bitfleet("show", "plan.json", "--html", "page.html").code == 0
    (place / "empty").touch()
    for begins, name in ((PLAN, "saved.json"), (PLAN, "plan.json"), (RECEIPT, "r.json"), (PROFILE, "d.json"),
                         (PAGE, "page.html")):  # fmt: skip
        check_file(place / name, begins)
        check_file(place / "empty", begins)
        check_file(place / "new", begins)
        with pytest.raises(InputError, match="holds something else"):
            check_file(place / name, PROFILE if begins != PROFILE else PLAN)
    assert bitfleet("show", "plan.json", "--html", "page.html").code == 0
    assert bitfleet(*ANCHOR, "d.json").code == 0
