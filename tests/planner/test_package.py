"""Packages: written whole or not at all, opened with care, verified by measuring."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from planner.package import MANIFEST, open_package, write_package
from planner.plan import Plan
from planner.runtimes.onnxruntime import export
from records.errors import InputError
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
    assert opened.plan == plan.portable()
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


def test_what_would_not_be_loaded_is_not_written(files: RoundedModel, plan: Plan, tmp_path: Path) -> None:
    settings = files.model_dir / "generation_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps({**json.loads(before), "temperature": 1e6}))
    try:
        with pytest.raises(InputError, match=r"would not be loaded: .* may not set search.temperature to 1000000.0"):
            write_package(RUNTIME, files, plan, tmp_path / "package")
    finally:
        settings.write_text(before)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("chat_template.jinja", b"\xff\xfe", "must be UTF-8"),
        ("chat_template.jinja", b'{{ "\\ud800" }}', "must be Unicode"),
        ("genai_config.json", b'"eos_token_id": 9999', "must load in onnxruntime-genai"),
        ("genai_config.json", b'"vocab_size": 9999', "must load in onnxruntime-genai"),
    ],
)
def test_what_a_package_cannot_answer_with_is_one_line(package: Path, name: str, content: bytes, said: str) -> None:
    """Whatever is allowed in one, it need not fit."""
    path = package / name
    if name.endswith(".json"):
        settings = json.loads(path.read_text())
        settings["model"] |= json.loads(b"{" + content + b"}")
        content = json.dumps(settings).encode()
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        list(RUNTIME.engine().speaker(package).generate("hello", 2))


def test_a_prompt_that_is_no_text_is_one_line(package: Path) -> None:
    (package / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(InputError, match="must be Unicode, at character 2"):
        list(RUNTIME.engine().speaker(package).generate("hi\udcff", 2))


def test_no_package_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no package at"):
        open_package(tmp_path / "nothing")


def test_run_streams_what_the_package_says(package: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(package)
    (said,) = RUNTIME.engine().speaker(package).continued(np.array([tokenizer("user: hello\n")["input_ids"]]), 8)
    assert len(said) == 8
    assert (
        "".join(RUNTIME.engine().speaker(package).generate("hello", 8))
        == tokenizer.decode(said, skip_special_tokens=True)
        != ""
    )
    with pytest.raises(ValueError, match="shorter than the package's context"):
        list(RUNTIME.engine().speaker(package).generate("hello " * 60, 8))
