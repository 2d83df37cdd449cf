"""What stands around a process: readers that leave, outputs that are closed or full, signals, odd terminals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from commands.terminal import note, printable, say, table

ROOT = Path(__file__).resolve().parent.parent
B = f"{sys.executable} {ROOT / 'cli.py'}"


def shell(line: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line of bash; the exit code is the first command's."""
    command = ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("profile list | true", 0, ""),
        ("profile list --json | head -c 1", 0, ""),
        ("--help | true", 0, ""),
        ("profile show nix | true", 2, "no device is called 'nix'"),
        ("profile list >&-", 0, ""),
        ("profile list 0<&- >&- 2>&-", 0, ""),
        ("profile show nix >&- 2>&-", 2, ""),
        ("profile show nix 2>/dev/full", 2, ""),
        ("profile list > /dev/full", 5, "No space left on device"),
        ("--help > /dev/full", 5, "No space left on device"),
    ],
)
def test_what_becomes_of_the_output_decides_nothing_but_lost_data(
    tmp_path: Path, line: str, code: int, said: str
) -> None:
    done = shell(f"{B} {line}", tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr if said else "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1
    assert list(tmp_path.iterdir()) == []


def test_an_ascii_terminal_gets_replaced_characters(tmp_path: Path) -> None:
    profile = tmp_path / "d.json"
    text = (ROOT / "profiles" / "catalog" / "h100-sxm-80gb.json").read_text("utf-8")
    assert '"name": "h100-sxm-80gb"' in text
    profile.write_text(text.replace('"name": "h100-sxm-80gb"', '"name": "gerät-日本"'), encoding="utf-8")
    for encoding, name in (("ascii", "ger?t-??"), ("latin-1", "gerät-??")):
        done = subprocess.run(
            [*B.split(), "profile", "show", str(profile)],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert name in done.stdout.decode(encoding)


def test_sigterm_is_one_line_and_exit_143(tmp_path: Path) -> None:
    line = [*B.split(), "profile", "device", "--out", str(tmp_path / "device.json")]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()  # it has begun
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # as `timeout` does
        rest = process.stderr.read()
        assert process.wait(60) == 143, rest
    assert [line for line in rest.splitlines() if " %  " not in line] == [
        "error: terminated; nothing half-written is left behind"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 日本 👩\u200d💻", "plain ä 日本 👩\u200d💻"),
        ("red \x1b[31m", "red \\x1b[31m"),
        ("two\nlines\r\x08", "two\\x0alines\\x0d\\x08"),
        ("bidi \u202e\u2066", "bidi \\u202e\\u2066"),
        ("c1 \x9b31m", "c1 \\x9b31m"),
        ("separators \u2028\u2029\x85", "separators \\u2028\\u2029\\x85"),
        ("tag \U000e0041", "tag \\U000e0041"),
        ("half \ud83d", "half \\ud83d"),
    ],
)
def test_text_from_files_does_not_act_on_a_terminal(capsys: pytest.CaptureFixture[str], text: str, shown: str) -> None:
    assert printable(text) == shown
    say(text)
    table(("HEAD", ""), [("a", text)])
    note(text)
    captured = capsys.readouterr()
    assert captured.out == f"{shown}\nHEAD\na     {shown}\n"
    assert captured.err == f"{shown}\n"


def test_errors_with_text_of_files_stay_one_line(bitfleet: Any) -> None:
    done = bitfleet("profile", "show", "nix\x1b[2J\nerror: all is well")
    assert done.code == 2
    assert "nix\\x1b[2J\\nerror: all is well" in done.error


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT must be set"),
        ({"LOCAL_RANK": "0"}, "unset LOCAL_RANK"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK must be a whole number"),
    ],
)
def test_variables_that_a_launcher_left_are_said_instead_of_waiting(
    bitfleet: Any, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = bitfleet("train", "smollm2-135m-instruct")
    assert done.code == 2
    assert told in done.error


def test_a_prompt_that_looks_like_an_option_gets_a_hint(bitfleet: Any) -> None:
    assert "bitfleet run DIR -- PROMPT" in bitfleet("run", "package", "-5 + 3").error
    assert "no package at package" in bitfleet("run", "package", "--", "-5 + 3").error
