"""A delta between two packages of random codes: refused in a line, or the new package to the last bit. No torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner import delta as subject
from planner.delta import DATA, DELTA, Part, apply_delta, open_delta, signature, write_delta
from planner.package import MANIFEST, open_package
from planner.runtimes.base import PackageFormat
from planner.runtimes.onnxruntime.packages import OnnxPackages
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.shapes import Shape
from records.errors import InputError, MissingError, SystemFailure
from supernet.space import Choice, Subnet

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from fuzz_readers import SHAPE, random_package_of

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = OnnxRuntime()
UNIT, MATRIX = "model.layers.1.mlp.down_proj", "model.layers.1.mlp.down_proj.MatMul.weight"
LARGE = Shape("large", 2, 2048, 24576, 16, 8, 128, 32000)  # 450 MB at 8 bits


def subnet(shape: Shape = SHAPE, **bits: int) -> Subnet:
    """8 bits everywhere but in the units whose names, dots as underscores, are given."""
    return Subnet.of({u.name: Choice(bits.get(u.name.replace(".", "_"), 8), 32) for u in shape.spec().units})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """old and new, which differ in one unit; other, which is neither; and the delta from old to new."""
    folder = tmp_path_factory.mktemp("made")
    random_package_of(SHAPE, subnet(), folder / "old")
    random_package_of(SHAPE, subnet(**{UNIT.replace(".", "_"): 4}), folder / "new")
    random_package_of(SHAPE, subnet(lm_head=4, model_embed_tokens=4), folder / "other")
    write_delta(RUNTIME, open_package(folder / "old"), open_package(folder / "new"), folder / "delta")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "place")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_only_the_changed_unit_is_carried_and_the_new_package_is_exact(place: Path) -> None:
    delta = open_delta(place / "delta")
    assert delta.changed == (f"{MATRIX}.codes", f"{MATRIX}.zeros")  # the random scales are the same at any bits
    assert [part.file for part in delta.parts["tokenizer.json"]] == ["tokenizer.json"]
    apply_delta(place / "old", place / "delta", place / "made")
    assert contents(place / "made") == contents(place / "new")
    assert everything(place / "made") == everything(place / "new")


def test_a_delta_is_the_same_however_often_it_is_made(place: Path) -> None:
    before = contents(place / "delta")
    write_delta(RUNTIME, open_package(place / "old"), open_package(place / "new"), place / "delta")
    assert contents(place / "delta") == before


def test_equal_packages_make_an_empty_delta(place: Path) -> None:
    delta = write_delta(RUNTIME, open_package(place / "old"), open_package(place / "old"), place / "none")
    assert (delta.changed, delta.data.bytes, delta.tensors) == ((), 0, open_delta(place / "delta").tensors)
    apply_delta(place / "old", place / "none", place / "made")
    assert contents(place / "made") == contents(place / "old")


def test_packages_with_nothing_in_common_but_their_shape_work_too(place: Path) -> None:
    write_delta(RUNTIME, open_package(place / "other"), open_package(place / "new"), place / "delta")
    apply_delta(place / "other", place / "delta", place / "made")
    assert contents(place / "made") == contents(place / "new")


@pytest.mark.parametrize("swaps", [True, False])
def test_the_old_package_may_be_replaced(place: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool) -> None:
    if not swaps:
        monkeypatch.setattr("records.atomic._exchange", lambda one, other: False)
    before = everything(place)
    (place / "link").symlink_to("old")
    apply_delta(place / "link", place / "delta", place / "link")
    assert contents(place / "old") == contents(place / "new")
    assert (place / "link").is_symlink()
    (place / "link").unlink()
    assert everything(place) == before


def test_a_runtime_that_knows_no_tensors_carries_whole_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxPackages, "pieces", PackageFormat.pieces)
    delta = write_delta(RUNTIME, open_package(place / "old"), open_package(place / "new"), place / "delta")
    assert (delta.changed, delta.tensors) == ((), 0)
    assert [part.file for part in delta.parts["model.onnx.data"]] == [None]
    apply_delta(place / "old", place / "delta", place / "made")
    assert contents(place / "made") == contents(place / "new")


# --- refused, and nothing written ---------------------------------------------------------------------------------


def refused(place: Path, said: str, old: str = "old", kind: type[Exception] = InputError) -> None:
    before = everything(place)
    with pytest.raises(kind, match=said) as found:
        apply_delta(place / old, place / "delta", place / "deep" / "made")
    assert "\n" not in str(found.value)
    assert everything(place) == before


FILES = ("genai_config.json", MANIFEST, "model.onnx", "model.onnx.data", "tokenizer.json")


@pytest.mark.parametrize("name", [*(f"old/{name}" for name in FILES), f"delta/{DELTA}", f"delta/{DATA}"])
def test_a_flipped_bit_is_refused_wherever_it_is(place: Path, name: str) -> None:
    data = (place / name).read_bytes()
    for at in {0, len(data) // 3, len(data) // 2, len(data) - 2}:
        flipped = bytearray(data)
        flipped[at] ^= 1
        (place / name).write_bytes(flipped)
        refused(place, "damaged|not JSON|not the package|not a delta of|not a manifest")
    (place / name).write_bytes(data[:-3])
    refused(place, "damaged|not JSON|not the package")
    (place / name).unlink()
    refused(place, "lacks|no package manifest|no delta.json|regular files", kind=InputError)


def test_every_flipped_bit_of_the_index_is_refused(place: Path) -> None:
    index = place / "delta" / DELTA
    data = index.read_bytes()
    for at in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        index.write_bytes(flipped)
        try:
            same = json.loads(flipped) == json.loads(data)  # a space that became another
        except ValueError:
            same = False
        if not same:
            with pytest.raises(InputError):
                open_delta(place / "delta")


def test_another_package_is_refused(place: Path) -> None:
    for name in ("other", "new"):
        refused(place, "give the package that it was made from", name)
    refused(place, "no package at", "nothing", MissingError)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: (p / "old" / "more.json").write_text("{}"), "more.json is not"),
        (lambda p: (p / "delta" / "more").write_text(""), "regular files delta.json and delta.data alone"),
        (lambda p: (p / "delta" / DATA).rename(p / "x") and (p / "delta" / DATA).symlink_to(p / "x"), "regular files"),
        (
            lambda p: (p / "delta" / DELTA).rename(p / "x") and (p / "delta" / DELTA).symlink_to(p / "x"),
            "regular files",
        ),
        (lambda p: os.mkfifo(p / "old" / "pipe"), "regular files alone"),
        (lambda p: shutil.rmtree(p / "delta"), "no delta at"),
        (lambda p: [shutil.rmtree(p / "delta"), shutil.copytree(p / "new", p / "delta")], "it is no delta"),
    ],
)
def test_folders_hold_regular_files_of_their_own_alone(
    place: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(place)
    refused(place, said)


def forge(place: Path, change: Callable[[dict[str, Any]], object], data: bytes | None = None) -> None:
    """An index as a forger writes it, with the hashes of what is there."""
    path = place / "delta" / DELTA
    index = json.loads(path.read_bytes())
    change(index)
    if data is not None:
        (place / "delta" / DATA).write_bytes(data)
        index["data"] = vars(subject._entry(place / "delta" / DATA))
    path.write_text(json.dumps({**index, "sha256": signature(index)}))


def of_weights(index: dict[str, Any], **changes: Any) -> None:
    index["parts"]["model.onnx.data"][0] |= changes


def renamed(index: dict[str, Any], name: str) -> None:
    for key in ("new", "parts"):
        index[key][name] = index[key].pop("tokenizer.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i: of_weights(i, offset=2**40), "beyond the end of model.onnx.data"),
        (lambda i: of_weights(i, offset=2**62, bytes=2**62), "bytes in all"),
        (lambda i: of_weights(i, offset=-1), "at least 0"),
        (lambda i: of_weights(i, bytes=0), "at least 1"),
        (lambda i: of_weights(i, file="../../etc/passwd"), "must be listed"),
        (lambda i: of_weights(i, file=None), "never both"),
        (lambda i: of_weights(i, packed_bytes=1), "never both"),
        (lambda i: i["parts"]["model.onnx.data"].pop(0), "bytes in all"),
        (lambda i: i["parts"].pop("tokenizer.json"), "every new file its parts"),
        (lambda i: i["new"].pop(MANIFEST), "every new file its parts"),
        (lambda i: i["old"].pop(MANIFEST), "must have a manifest.json"),
        (lambda i: i["old"].pop("model.onnx.data"), "must be listed"),
        (lambda i: renamed(i, "../x"), "plain name"),
        (lambda i: renamed(i, "a/b"), "plain name"),
        (lambda i: renamed(i, ".x"), "plain name"),
        (lambda i: i["old"].update({"/etc/passwd": i["old"][MANIFEST]}), "plain name"),
        (lambda i: i["old"]["tokenizer.json"].update(bytes=10**6), "disagree about tokenizer.json"),
        (lambda i: i["old"].update(absent=i["old"]["tokenizer.json"]), "disagree about absent"),
        (lambda i: i["data"].update(bytes=10**6), "must use all"),
        (lambda i: i["data"].update(sha256="0" * 64), "delta.data is damaged"),
        (lambda i: i.update(schema=2), "not a delta of this version"),
        (lambda i: i.update(tensors=-1), "at least 0"),
        (lambda i: i.update(parts=[]), "must be an object"),
    ],
)  # fmt: skip
def test_what_a_stranger_s_delta_may_not_say(
    place: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    forge(place, change)
    refused(place, said)


def test_what_does_not_make_the_promised_files_is_not_kept(place: Path) -> None:
    """Consistent in itself, and still no such package: found while it is written, under a temporary name."""
    forge(place, lambda i: i["new"]["tokenizer.json"].update(sha256="0" * 64))
    refused_late(place, "does not make the tokenizer.json")
    shutil.rmtree(place / "delta")
    write_delta(RUNTIME, open_package(place / "old"), open_package(place / "new"), place / "delta")
    forge(place, lambda i: renamed(i, "other.json"))
    refused_late(place, "whose manifest.json is of other files")


def refused_late(place: Path, said: str) -> None:
    before = everything(place)
    with pytest.raises(InputError, match=said):
        apply_delta(place / "old", place / "delta", place / "made")
    assert everything(place) == before


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (b"\xff" * 50, "cannot be unpacked"),
        (zlib.compress(bytes(10**7)), "does not unpack to"),
        (zlib.compress(bytes(10**7))[:-5], "does not unpack to"),
        (zlib.compress(bytes(10)), "does not unpack to"),
        (zlib.compress(bytes(3000)) + b"x", "does not unpack to"),
    ],
    ids=["nonsense", "too much", "cut", "too little", "more behind"],
)
def test_packed_bytes_that_hold_something_else_are_refused(place: Path, packed: bytes, said: str) -> None:
    (place / "packed").write_bytes(packed)
    with (place / "packed").open("rb") as file, pytest.raises(InputError, match=said):
        assert sum(map(len, subject._unpacked(file, 0, len(packed), 3000))) <= 3001


def test_a_part_is_copied_or_carried() -> None:
    assert Part(5, 0, "model.onnx") and Part(5, 0, None, 5)
    for wrong in ({}, {"file": "a", "packed_bytes": 5}, {"packed_bytes": 6}, {"packed_bytes": 0}):
        with pytest.raises(InputError):
            Part(5, 0, **wrong)  # type: ignore[arg-type]


def test_too_little_room_is_said_before_anything_is_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(place, "1000 are free there; free some space", kind=SystemFailure)


def test_outputs_that_would_be_in_the_way_are_refused(place: Path) -> None:
    old, new = open_package(place / "old"), open_package(place / "new")
    before = everything(place)
    for out, said in (("new/d", "within the other"), ("old", "over an older delta"), (".", "over an older delta")):
        with pytest.raises(InputError, match=said):
            write_delta(RUNTIME, old, new, place / out)
    for out, said in (("old/n", "within the other"), ("delta/n", "within"), ("delta", "over an older package")):
        with pytest.raises(InputError, match=said):
            apply_delta(place / "old", place / "delta", place / out)
    assert everything(place) == before


def test_packages_of_two_runtimes_have_no_delta(place: Path) -> None:
    old = open_package(place / "old")
    other = replace(old, plan=replace(old.plan, runtime="tomorrow"))
    with pytest.raises(InputError, match="of one runtime"):
        write_delta(RUNTIME, other, open_package(place / "new"), place / "d")


# --- the command line ---------------------------------------------------------------------------------------------


def test_the_commands_say_what_changed_and_what_to_do_next(bitfleet: Any, place: Path) -> None:
    said = bitfleet("delta", place / "old", place / "new", "--out", place / "d")
    assert said.code == 0, said.err
    assert said.out.splitlines()[0] == f"2 of {open_delta(place / 'd').tensors} tensors changed"
    assert f"next: bitfleet apply {place / 'old'} {place / 'd'} --out DIR" in said.out
    found = json.loads(bitfleet("delta", place / "old", place / "new", "--out", place / "d", "--json").out)
    assert found["changed"] == [f"{MATRIX}.codes", f"{MATRIX}.zeros"]
    assert found["delta_bytes"] == sum(path.stat().st_size for path in (place / "d").iterdir())
    assert found["package_bytes"] == sum(path.stat().st_size for path in (place / "new").iterdir())
    done = bitfleet("apply", place / "old", place / "d", "--out", place / "made")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"next: bitfleet verify {place / 'made'}"
    assert contents(place / "made") == contents(place / "new")


BLOCKED = """if True:
    import sys
    for name in ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime_genai", "scipy", "optuna"):
        sys.modules[name] = None  # importing it fails
    import cli
    cli.main(sys.argv[1:])
"""


def command(*arguments: object, code: str = BLOCKED) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_both_work_where_nothing_heavy_is_installed(place: Path) -> None:
    for line in (("delta", "old", "new", "--out", "d"), ("apply", "old", "d", "--out", "made")):
        done = subprocess.run(
            command(*line), cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert contents(place / "made") == contents(place / "new")


PEAK = """if True:
    import resource, sys
    import cli
    try:
        cli.main(sys.argv[1:])
    finally:
        own = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
        print(own[0].split()[1], file=sys.stderr)
"""


def peak_bytes(folder: Path, *arguments: object) -> int:
    line = command(*arguments, code=PEAK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.splitlines()[-1]) * 1024


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("large")
    random_package_of(LARGE, subnet(LARGE), folder / "old")
    random_package_of(LARGE, subnet(LARGE, model_layers_0_mlp_gate_up=4), folder / "new")
    yield folder
    shutil.rmtree(folder)


def test_memory_does_not_grow_with_the_package(large: Path, place: Path) -> None:
    """What both take beyond their libraries is a few chunks: files of hundreds of megabytes, a tensor of 50 as one."""
    small = peak_bytes(place, "delta", "old", "new", "--out", "d"), peak_bytes(place, "apply", "old", "d", "--out", "m")
    assert (large / "new" / "model.onnx.data").stat().st_size > 3e8
    assert peak_bytes(large, "delta", "old", "new", "--out", "d") < small[0] + 2e7
    assert peak_bytes(large, "apply", "old", "d", "--out", "m") < small[1] + 2e7
    assert open_package(large / "m").files == open_package(large / "new").files
    shutil.rmtree(large / "m")


def test_a_kill_leaves_nothing_under_the_new_name_and_the_next_run_cleans_up(large: Path) -> None:
    """At several moments: before, while and after the folder is written."""
    write_delta(RUNTIME, open_package(large / "old"), open_package(large / "new"), large / "d")
    line = command("apply", "old", "d", "--out", "made", code="import cli, sys; cli.main(sys.argv[1:])")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begun = 0
    for after in (0.0, 0.05, 0.2):
        with subprocess.Popen(line, cwd=large, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            while run.poll() is None and not any(large.glob(".made.tmp-*")):
                time.sleep(0.01)
            time.sleep(after)
            run.send_signal(signal.SIGKILL)
            run.wait()
        begun += any(large.glob(".made.tmp-*"))
        assert not (large / "made").exists() or open_package(large / "made").files == open_package(large / "new").files
        shutil.rmtree(large / "made", ignore_errors=True)
    assert begun
    apply_delta(large / "old", large / "d", large / "made")
    assert not any(large.glob(".made.*"))
    open_package(large / "made").check_files()
