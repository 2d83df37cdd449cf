"""bitfleet show: a plan again, two plans side by side, a page."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.fleet.index import TIME
from planner.plan import Plan
from tests.planner.test_card import receipt
from tests.planner.test_pipeline import BUDGET, drawn, planned, sensitive_files

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Plan]:
    files = sensitive_files(tmp_path_factory.mktemp("net"))
    return drawn(files, BUDGET), planned(files, replace(BUDGET, memory_bytes=240_000_000))


@pytest.fixture
def plans(both: tuple[Plan, Plan], tmp_path: Path) -> tuple[Plan, Plan]:
    """Two plans, saved as a.json and b.json."""
    for name, one in zip("ab", both, strict=True):
        one.save(tmp_path / f"{name}.json")
    return both


def test_a_plan_is_shown_as_it_was_printed(
    bitfleet: Any, plans: tuple[Plan, Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from commands.reports import print_plan

    done = bitfleet("show", tmp_path / "a.json")
    print_plan(Plan.load(tmp_path / "a.json"))
    assert (done.code, done.out) == (0, capsys.readouterr().out)
    assert "BESIDE IT" in done.out and "bits by layer  0 to 29" in done.out
    assert json.loads(bitfleet("show", tmp_path / "a.json", "--json").out) == json.loads(
        json.dumps(Plan.load(tmp_path / "a.json").to_json())
    )


def test_two_plans_stand_side_by_side(bitfleet: Any, plans: tuple[Plan, Plan], tmp_path: Path) -> None:
    paths = tmp_path / "a.json", tmp_path / "b.json"
    done = bitfleet("show", *paths)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    (limit,) = [line for line in lines if line.startswith("limit")]
    assert limit.split() == ["limit", "peak", "memory", "228.0", "MB", "240.0", "MB", "+5.3%"]
    first, second = (plan.bits for plan in plans)
    role = next(role for role in first if first[role] != second[role])
    start = next(number for number, line in enumerate(lines) if line.split() == [role, first[role]])
    indent = len(lines[start]) - len(first[role])
    assert lines[start + 1] == " " * indent + second[role]
    marks = "".join(" " if a == b else "^" for a, b in zip(first[role], second[role], strict=True))
    assert lines[start + 2] == (" " * indent + marks).rstrip()
    found = json.loads(bitfleet("show", *paths, "--json").out)
    assert found["plans"] == [str(path) for path in paths] and len(found["units"]) > 0


def test_a_page_has_what_a_receipt_says(bitfleet: Any, plans: tuple[Plan, Plan], tmp_path: Path) -> None:
    receipt(plans[0]).save(tmp_path / "r.json")
    done = bitfleet("show", tmp_path / "a.json", "--receipt", tmp_path / "r.json", "--html", tmp_path / "card.html")
    assert done.code == 0 and f"wrote {tmp_path / 'card.html'}" in done.err
    assert "99.9 ms" in (tmp_path / "card.html").read_text() and "99.9 ms" in done.out and TIME in done.out


def test_a_package_holds_its_plan(bitfleet: Any, tmp_path: Path) -> None:
    from fuzz_readers import delta

    delta(tmp_path)
    done = bitfleet("show", tmp_path / "p")
    assert done.code == 0, done.err
    assert "peak memory" in done.out


def test_what_cannot_be_shown_is_one_line(bitfleet: Any, plans: tuple[Plan, Plan], tmp_path: Path) -> None:
    receipt(plans[1]).save(tmp_path / "r.json")
    other = bitfleet("show", tmp_path / "a.json", "--receipt", tmp_path / "r.json")
    assert other.code == 2 and "a receipt must be of the plan's package" in other.error
    both = bitfleet("show", tmp_path / "a.json", tmp_path / "b.json", "--html", tmp_path / "c.html")
    assert both.code == 2 and "--html and --receipt are of one plan" in both.error
    assert not (tmp_path / "c.html").exists()
