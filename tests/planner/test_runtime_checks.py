"""What `bitfleet doctor` says of runtimes that are installed, missing, of another version, or broken."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from planner import doctor, runtimes
from planner.checks import FAIL, PASS, WARN, Check
from planner.runtimes import OWN, library
from planner.runtimes.library import Library
from planner.runtimes.llamacpp.serving import LIBRARY, VERSION
from planner.runtimes.mlx.runtime import LIBRARY as MLX
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.vllm.runtime import LIBRARY as COMPRESSED_TENSORS

HERE = Library("numpy", "here", (1, 0), "print(16.0 + 16.0)", "all goes on")
FIX = "pip install 'bitfleet[here]'"


def versions(monkeypatch: pytest.MonkeyPatch, **said: str | None) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        found = said.get(name, real(name) if name not in said else None)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize("one", [COMPRESSED_TENSORS, MLX], ids=lambda one: one.package)
def test_what_is_installed_multiplies(one: Library) -> None:
    try:
        version = importlib.metadata.version(one.package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{one.package} is not installed; {one.fix}")
    runs = ", 4-bit products run" if one.script else ""
    assert one.check() == Check(one.package, PASS, version + runs)


def test_onnx_runtime_multiplies_and_its_generator_loads() -> None:
    product, generator = OnnxRuntime().checks()
    assert product.status == generator.status == PASS and product.detail.endswith(", 4-bit products run")
    assert (product.name, generator.name) == ("onnxruntime", "onnxruntime-genai")


def test_llama_cpp_multiplies() -> None:
    pytest.importorskip(LIBRARY, reason="pip install 'bitfleet[llamacpp]'")
    (found,) = OWN["llamacpp"]().checks()
    assert (found.status, found.fix) == (PASS, None)
    assert found.detail.startswith(f"{LIBRARY} {VERSION}, 4-bit products run")


@pytest.mark.parametrize(
    ("change", "status", "detail"),
    [
        ({"package": "no-such-package"}, PASS, f"not installed; all goes on ({FIX})"),
        ({"least": (99, 0)}, WARN, "99.0 or newer is needed"),
        ({"script": "print(31.5)"}, FAIL, "gave 31.5, not 32"),
        ({"script": "raise OSError('no such instruction')"}, FAIL, "no such instruction"),
        ({"script": "import os; os.abort()"}, FAIL, "no message"),
    ],
)
def test_what_is_wrong_is_said_with_its_fix(change: dict[str, Any], status: str, detail: str) -> None:
    found = replace(HERE, **change).check()
    assert (found.status, found.fix) == (status, None if status == PASS else FIX) and detail in found.detail
    assert HERE.check().status == PASS


def test_a_product_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "SECONDS", 0.2)
    found = replace(HERE, script="import time; time.sleep(60)").check()
    assert found.status == FAIL and "more than" in found.detail


def test_another_build_of_llama_cpp_is_told_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(LIBRARY, reason="pip install 'bitfleet[llamacpp]'")
    versions(monkeypatch, **{LIBRARY: "2030.1.0"})
    (found,) = OWN["llamacpp"]().checks()
    assert (found.status, found.fix) == (WARN, "pip install 'bitfleet[llamacpp]'")
    assert found.detail == f"{LIBRARY} 2030.1.0 is installed, {VERSION} is needed"


def test_a_runtime_whose_checks_fail_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(OnnxRuntime):
        def checks(self) -> Iterator[Check]:
            raise OSError("no such file")

    # A mapping of its own: what is taken out of the real one comes back in another order.
    monkeypatch.setattr(runtimes, "RUNTIMES", {"broken": Broken, "vllm": OWN["vllm"]})
    first, *others = doctor.runtimes()
    assert (first.name, first.status, first.detail) == ("runtime broken", FAIL, "OSError: no such file")
    assert [other.name for other in others] == ["compressed-tensors", "aiconfigurator-core"]
