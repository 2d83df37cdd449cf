"""What `bitfleet doctor` says of runtimes that are installed, missing, of another version, or broken."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from planner import doctor, runtime_checks
from planner.runtime_checks import BROKEN, INSTALLED, MISSING, OPTIONAL, OTHER, Found, Optional, llamacpp, optional
from planner.runtimes.llamacpp.serving import LIBRARY, VERSION

HERE = Optional("here", "numpy", "here", (1, 0), "print(16.0 + 16.0)", "all goes on")


def versions(monkeypatch: pytest.MonkeyPatch, **said: str | None) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        found = said.get(name, real(name) if name not in said else None)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize("one", OPTIONAL, ids=lambda one: one.name)
def test_what_is_installed_multiplies(one: Optional) -> None:
    try:
        version = importlib.metadata.version(one.package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{one.package} is not installed; {one.fix}")
    runs = ", 4-bit products run" if one.script else ""
    assert optional(one) == Found(one.name, INSTALLED, version + runs, None)


def test_llama_cpp_multiplies() -> None:
    pytest.importorskip(LIBRARY, reason="pip install 'bitfleet[llamacpp]'")
    found = llamacpp()
    assert (found.state, found.fix) == (INSTALLED, None)
    assert found.detail.startswith(f"{LIBRARY} {VERSION}, 4-bit products run")


@pytest.mark.parametrize(
    ("change", "state", "detail"),
    [
        ({"package": "no-such-package"}, MISSING, "not installed; all goes on"),
        ({"least": (99, 0)}, OTHER, "99.0 or newer is needed"),
        ({"script": "print(31.5)"}, BROKEN, "gave 31.5, not 32"),
        ({"script": "raise OSError('no such instruction')"}, BROKEN, "no such instruction"),
        ({"script": "import os; os.abort()"}, BROKEN, "no message"),
    ],
)
def test_what_is_wrong_is_said_with_its_fix(change: dict[str, Any], state: str, detail: str) -> None:
    found = optional(replace(HERE, **change))
    assert (found.state, found.fix) == (state, "pip install 'bitfleet[here]'") and detail in found.detail
    assert optional(HERE).state == INSTALLED


def test_a_product_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_checks, "SECONDS", 0.2)
    found = optional(replace(HERE, script="import time; time.sleep(60)"))
    assert found.state == BROKEN and "more than" in found.detail


def test_another_build_of_llama_cpp_is_told_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(LIBRARY, reason="pip install 'bitfleet[llamacpp]'")
    versions(monkeypatch, **{LIBRARY: "2030.1.0"})
    found = llamacpp()
    assert (found.state, found.fix) == (OTHER, "pip install 'bitfleet[llamacpp]'")
    assert found.detail == f"{LIBRARY} 2030.1.0 is installed, {VERSION} is needed"


@pytest.mark.parametrize(
    ("state", "status"), [(INSTALLED, "PASS"), (MISSING, "PASS"), (OTHER, "WARN"), (BROKEN, "FAIL")]
)
def test_doctor_has_a_row_for_each(state: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Found("a runtime", state, "detail", None if state == INSTALLED else "pip install it")
    said: Callable[[], Any] = lambda: iter([found])  # noqa: E731
    monkeypatch.setattr(runtime_checks, "check_all", said)
    (row,) = doctor.other_runtimes()
    assert (row.name, row.status) == ("a runtime", status)
    assert (row.fix is None) == (status == "PASS") and ("pip install it" in row.detail or state != MISSING)
