"""Manners of the command line: it starts fast, its JSON parses, bad input gets one line and the documented code."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cli
from commands.exits import explain
from records.errors import BudgetError, InputError, MissingError, NotInstalledError, SystemFailure, Terminated
from tests.starting import standard_s, starting_s

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    [],
    ["profile"],
    ["profile", "device"],
    ["profile", "list"],
    ["profile", "show"],
    ["profile", "anchor"],
    ["train"],
    ["evaluate"],
    ["plan"],
    ["show"],
    ["export"],
    ["delta"],
    ["apply"],
    ["verify"],
    ["run"],
    ["doctor"],
)


def test_help_starts_in_the_promised_time() -> None:
    """0.3 s of a core, or on a slower one as much of the standard library's imports; the least of five starts."""
    seconds = starting_s("cli.py", "--help")
    assert min(seconds) <= max(0.3, 3.8 * standard_s()), seconds


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(bitfleet: Any, command: list[str]) -> None:
    done = bitfleet(*command, "--help")
    assert done.code == 0
    assert "Usage: bitfleet" in done.out


def test_help_lists_the_exit_codes(bitfleet: Any) -> None:
    text = bitfleet("--help").out
    for code in (0, 1, 2, 3, 4, 5, 70, 130, 143):
        assert re.search(rf"^ +{code}  ", text, re.MULTILINE)


def test_version(bitfleet: Any) -> None:
    assert bitfleet("--version").out.strip().endswith(cli.__version__)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fly"], "fly"),
        (["plan"], "--mem"),
        (["plan", "--mem", "8GB", "--fast"], "--fast"),
        (["plan", "--mem", "8 gigs"], "8GiB"),
        (["plan", "--mem", "8GB", "--latency", "soon"], "20ms"),
        (["plan", "--mem", "8GB", "--latency", "20ms", "--target-tps", "20"], "--target-tps 20 is 50 ms a token"),
        (["plan", "--mem", "8GB", "--target-tps", "nan"], "tokens a second"),
        (["plan", "--mem", "-1GB"], "8GiB"),
        (["plan", "--mem", "8GB", "--storage", "sqlite:///a.db"], "the search of --minutes: give both, or none"),
        (["plan", "--mem", "8GB", "--front"], "--front is searched for --minutes: give both, or none"),
        (["plan", "--max-loss", "2%", "--front", "--minutes", "1"], "give one of them"),
        (["plan", "--max-loss", "2 percent"], "0.02, or a share of perplexity such as 2%"),
        (["plan", "--max-loss", "2%", "--minutes", "1"], "give one of them"),
        (["plan", "no-such-supernet", "--mem", "8GB"], "no-such-supernet"),
        (["show", "no-such-plan.json"], "no-such-plan.json"),
        (["plan", "--mem", "8GB", "--runtime", "tensorrt"], "onnxruntime"),
        (["plan", "--mem", "8GB", "--batch", "many"], "many"),
        (["profile", "show", "no-such-device"], "bitfleet profile list"),
        (["profile", "show", "no-such-device.json"], "no-such-device.json"),
        (["profile", "anchor", "l4-24gb"], "--llama-bench FILE or --figure"),
        (["profile", "anchor", "l4-24gb", "--figure", "Q4_K_M,4.92GB,8.03B"], "Q4_K_M,4.92GB,8.03B,46.2"),
        (["profile", "anchor", "l4-24gb", "--figure", "Q4_K_M,4.92GB,8.03B,0"], "Q4_K_M,4.92GB,8.03B,46.2"),
        (["profile", "anchor", "l4-24gb", "--figure", "Q9,4.92GB,8.03B,46"], "Q2_K to Q6_K"),
        (["profile", "anchor", "l4-24gb", "--figure", "Q4_0,4.92,8.03B,46"], "8GiB"),
        (["profile", "anchor", "l4-24gb", "--llama-bench", "no-such-file.json"], "llama-bench -p 0 -n 128 -o json"),
        (["profile", "anchor", "l4-24g", "--llama-bench", "no-such-file.json"], "l4-24gb"),
        (["profile", "device", "--device", "tpu"], "auto, cpu or cuda:N"),
        (["train", "./no-such-model"], "no-such-model"),
        (["train", "no-such-model.gguf"], "no-such-model.gguf"),
        (["train", "smollm2-135m-instruct", "--bits", "four"], "--bits"),
        (["train", "smollm2-135m-instruct", "--quantizer", "magic"], "rtn"),
        (["train", "smollm2-135m-instruct", "--adapter", "magic"], "scales"),
        (["train", "smollm2-135m-instruct", "--sampler", "magic"], "sandwich"),
        (["train", "smollm2-135m-instruct", "--schedule", "magic"], "delayed"),
        (["train", "smollm2-135m-instruct", "--teacher", "magic"], "largest"),
        (["evaluate", "no-such-supernet", "--bits", "4"], "no-such-supernet"),
        (["export", "no-such-plan.json", "--out", "package"], "no-such-plan.json"),
        (["verify", "no-such-package"], "no-such-package"),
        (["delta", "no-such-package", "package", "--out", "delta"], "no-such-package"),
        (["apply", "package", "no-such-delta", "--out", "new"], "no-such-delta"),
        (["run", "no-such-package", "Hello"], "no-such-package"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_2(bitfleet: Any, arguments: list[str], told: str) -> None:
    if arguments[0] == "train":
        pytest.importorskip("torch")
    done = bitfleet(*arguments)
    assert done.code == 2, done.err
    assert told in done.error
    assert done.out == ""


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"name": 3}', "\x00\xff"], ids=["empty", "cut", "list", "wrong", "binary"]
)
@pytest.mark.parametrize("command", ["profile", "show", "plan", "export", "verify", "delta", "apply"])
def test_corrupt_files_are_one_line_and_exit_2(bitfleet: Any, tmp_path: Path, command: str, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text, "latin-1")
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "manifest.json").write_text(text, "latin-1")
    arguments = {
        "profile": ["profile", "show", path],
        "show": ["show", path],
        "plan": ["plan", tmp_path / "none", "--mem", "8GB", "--device", path],
        "export": ["export", path, "--out", tmp_path / "out"],
        "verify": ["verify", folder],
        "delta": ["delta", folder, folder, "--out", tmp_path / "out"],
        "apply": ["apply", folder, folder, "--out", tmp_path / "out"],
    }[command]
    done = bitfleet(*arguments)
    assert done.code == 2, done.err
    assert done.error
    assert not (tmp_path / "out").exists()


def test_profile_list_and_show_as_json(bitfleet: Any) -> None:
    listed = json.loads(bitfleet("profile", "list", "--json").out)
    assert len(listed) >= 12
    shown = json.loads(bitfleet("profile", "show", listed[0]["name"], "--json").out)
    assert shown == listed[0]
    text = bitfleet("profile", "list").out
    assert all(entry["name"] in text for entry in listed)


def test_doctor(bitfleet: Any) -> None:
    done = bitfleet("doctor", "--json")
    report = json.loads(done.out)
    assert done.code == 0
    assert report["ok"]
    assert {check["status"] for check in report["checks"]} <= {"PASS", "WARN"}
    assert all(check["fix"] for check in report["checks"] if check["status"] != "PASS")
    assert report["next"].startswith("bitfleet ")


def test_doctor_fails_with_the_fix_where_the_cache_cannot_be_written(
    bitfleet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BITFLEET_CACHE", str(tmp_path / "file"))
    done = bitfleet("doctor")
    assert done.code == 1
    assert "FAIL" in done.out
    assert "fix for cache: set BITFLEET_CACHE" in done.out


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (InputError("bits must be 2,\n 4 or 8, got 3"), 2, "bits must be 2, 4 or 8, got 3"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/y"), 2, "No such file or directory: /x/y"),
        (
            BudgetError("no plan fits 10 MB; the smallest takes 200 MB"),
            3,
            "no plan fits 10 MB; the smallest takes 200 MB",
        ),
        (ImportError("datasets is not installed; run: pip install datasets"), 4, "pip install datasets"),
        (ModuleNotFoundError("No module named 'onnx'"), 4, "bitfleet doctor"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 5, "free some space"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), 5, "TMPDIR"),
        (SystemFailure("the process was killed"), 5, "was killed"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 5, "Permission denied: /x/y"),
        (MemoryError(), 5, "out of memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."), 5, "out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), 5, "memory"),
        (MissingError("no plan at x"), 2, "no plan at x"),
        (
            NotInstalledError("train needs torch; run: pip install 'bitfleet[train]'"),
            4,
            "pip install 'bitfleet[train]'",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        (RuntimeError("odd"), 70, "bitfleet --debug"),
        (ValueError("zip() argument 2 is shorter than argument 1"), 70, "this is a bug in bitfleet"),
    ],
)
def test_every_kind_of_error_has_its_code(error: BaseException, code: int, told: str) -> None:
    found, line = explain(error)
    assert found == code
    assert told in line
    assert "\n" not in line


def test_debug_shows_where_an_error_came_from(bitfleet: Any) -> None:
    done = bitfleet("--debug", "verify", "no-such-package")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("error: ")


def test_output_into_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} cli.py profile list --json | head -c 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
