"""Wrong commands by the hundred: each is one line on stderr, nothing on stdout, and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import cli

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from fuzz_readers import delta, supernet

DEVICE = "laptop-i5-1240p-8gb"
NEEDED = {  # what each command needs before its options
    ("profile", "device"): (), ("profile", "list"): (), ("profile", "show"): (DEVICE,), ("train",): ("no-model",),
    ("evaluate",): ("NET",), ("plan",): ("NET", "--mem", "1GB", "--device", DEVICE), ("verify",): ("no-package",),
    ("show",): ("no-plan.json",), ("export",): ("no-plan.json", "--out", "p"), ("run",): ("no-package", "Hello"),
    ("doctor",): (), ("delta",): ("no-old", "no-new", "--out", "p"), ("apply",): ("no-old", "no-delta", "--out", "p"),
}  # fmt: skip
TOO_LONG, TOO_LONG_ERROR = "x" * 300, "File name too long: "
NUMBERS = {click.INT: ("x", "1.5", "", "1e3", "0x10"), click.FLOAT: ("x", "", "1,5", "--")}

UNREAL = ("nan", "inf", "-inf", "0", "-1", "1e300")


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for path in NEEDED:
        command: Any = cli.cli
        for name in path:
            command = command.commands[name]
        yield path, command


def wrong_types() -> Iterator[tuple[list[str], str]]:
    """Every option of every command: no value, and values that are no such number; unknown options, extra arguments."""
    for path, command in commands():
        start = [*path, *NEEDED[path]]
        yield [*start, "--no-such-option"], "--no-such-option"
        yield [*start, "one", "too", "many"], "unexpected extra argument"
        for option in (p for p in command.params if isinstance(p, click.Option) and not p.is_flag):
            yield [*start, option.opts[0]], option.opts[0]
            number = click.INT if isinstance(option.type, click.IntRange) else option.type
            ranged = isinstance(option.type, click.FloatRange)
            values = (*NUMBERS[click.FLOAT], *UNREAL) if ranged else NUMBERS.get(number, ())  # type: ignore[call-overload]
            for value in values:
                yield [*start, option.opts[0], value], option.opts[0]


def wrong_values() -> Iterator[tuple[list[str], str]]:
    sizes = ("8", "GB", "-1GB", "1e3GB", "0GB", "8 gigs", "nanGB", "infGB", "1..5GB", "\uff18GB", "", "9" * 400 + "GB")
    for size in sizes:
        yield ["plan", "NET", "--mem", size], "8GiB"
        yield ["plan", "NET", "--mem", "1GB", "--disk", size], "8GiB"
    for time in ("20", "0ms", "-1ms", "soon", "1h", "nanms", "infs", "", "9" * 400 + "s"):
        yield ["plan", "NET", "--mem", "1GB", "--latency", time], "20ms"
        yield ["plan", "NET", "--mem", "1GB", "--ttft", time], "20ms"
    plan = ["plan", "NET", "--mem", "1GB", "--device", DEVICE]
    for option in ("context", "batch", "prompt-tokens"):
        for number in ("0", "-1", str(-(2**70)), *([] if option == "batch" else [str(2**70)])):  # exit 3 for a batch
            yield [*plan, f"--{option}", number], option.replace("-", "_").split("_")[0]
    for context in ("", "4k", "MAX", "8..", "..8", "64,128"):
        yield [*plan, "--context", context], "a range 2048..8192, or max"
    for context in ("128..128", "128..64", "0..64"):
        yield [*plan, "--context", context], "is like 2048..8192"
    yield [*plan, "--context", f"64..{2**29}"], "context must be at most"
    for host in ("", "nix"):
        yield ["plan", "NET", "--mem", "1GB", "--device", "l4-24gb", "--host", host], "in the catalogue"
    yield ["plan", "NET", "--mem", "1GB", "--device", "l4-24gb", "--host", DEVICE, "--host-mem", "8"], "8GiB"
    for number in ("-1", "-100"):
        yield [*plan, "--trials", number], "trials"
        yield [*plan, "--seed", number], "seed"
    for name in ("", "tpu", "onnx", "ONNXRUNTIME", "../x"):
        yield [*plan, "--runtime", name], "--runtime must be one of auto, onnxruntime"
    for device in ("", "nix", "h100 sxm", "cuda:0"):
        yield ["plan", "NET", "--mem", "1GB", "--device", device], "in the catalogue"
    for device in ("", "tpu", "cuda", "cuda:x", "cuda:-1", "cuda:99"):
        yield ["profile", "device", "--device", device], "--device" if device == "cuda:99" else "auto, cpu or cuda:N"
    for number in ("0", "-1"):
        yield ["run", "no-package", "Hello", "--max-tokens", number], "--max-tokens"


def wrong_files() -> Iterator[tuple[list[str], str]]:
    for name in ("missing", "FOLDER", "EMPTY", "BINARY", "LIST", "PIPE", "\0"[:0], TOO_LONG):
        device, subnet, plan, package, delta = (
            TOO_LONG_ERROR if name == TOO_LONG else kind
            for kind in ("device profile", "subnet", "plan", "package", "delta")
        )
        yield ["profile", "show", f"{name}.json" if name == "missing" else f"./{name}"], device
        yield ["plan", name, "--mem", "1GB", "--device", DEVICE], "supernet"
        yield ["plan", "NET", "--mem", "1GB", "--device", f"./{name}"], device
        yield ["evaluate", name], "supernet"
        yield ["evaluate", "NET", "--subnet", name], subnet
        yield ["export", name, "--out", "p"], plan
        yield ["show", name], package if name == "FOLDER" else plan
        yield ["verify", name], package
        yield ["run", name, "Hello"], package
        yield ["delta", name, "PACKAGE", "--out", "p"], package
        yield ["delta", "PACKAGE", name, "--out", "p"], package
        yield ["apply", name, "DELTA", "--out", "p"], package
        yield ["apply", "PACKAGE", name, "--out", "p"], delta
    for name in (".", "/dev/null", "no/folder/x", TOO_LONG, "PIPE", "FOLDER", "/proc/x", "EMPTY/x"):
        yield ["plan", "NET", "--mem", "1GB", "--device", DEVICE, "--out", name], "--out"
        yield ["profile", "device", "--out", name], "--out"
    for name in (".", "/dev/null", TOO_LONG, "PIPE", "NET", "/proc/x", "EMPTY/x", "PACKAGE/x", "DELTA/x"):
        if name != "DELTA/x":
            yield ["delta", "PACKAGE", "PACKAGE", "--out", name], "give another"
        yield ["apply", "PACKAGE", "DELTA", "--out", name], "give another"
    yield ["delta", "PACKAGE", "PACKAGE", "--out", "PACKAGE"], "over an older delta"
    yield ["apply", "PACKAGE", "DELTA", "--out", "DELTA"], "over an older package"
    yield ["apply", "OTHER", "DELTA", "--out", "p"], "give the package that it was made from"
    yield ["apply", "DELTA", "PACKAGE", "--out", "p"], "delta"


CASES = [*wrong_types(), *wrong_values(), *wrong_files()]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    (folder / "NET").mkdir()
    supernet(folder / "NET")
    delta(folder)
    for made, name in (("p", "PACKAGE"), ("q", "OTHER"), ("d", "DELTA")):
        (folder / made).rename(folder / name)
    (folder / "FOLDER").mkdir()
    (folder / "EMPTY").touch()
    (folder / "BINARY").write_bytes(b"\x00\xff" * 100)
    (folder / "LIST").write_text("[1, 2]")
    os.mkfifo(folder / "PIPE")
    return folder


def test_there_are_enough() -> None:
    assert len(CASES) >= 200


@pytest.mark.parametrize(
    ("arguments", "told"), CASES, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else ""
)
def test_a_wrong_command_is_one_line_and_exit_2(
    bitfleet: Any, places: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(places)
    before = sorted(path.name for path in places.rglob("*"))
    done = bitfleet(*arguments)
    assert done.code == 2, (done.code, done.err[-500:])
    assert told in done.error
    assert done.out == ""
    assert [line for line in done.err.splitlines() if not line.startswith("error: ") and " %  " not in line] == []
    assert sorted(path.name for path in places.rglob("*")) == before
