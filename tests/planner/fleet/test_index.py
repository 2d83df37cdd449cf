"""The index of an export: a JSON round trip, names that stay, sums that sha256sum accepts."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.fleet.index import (
    CHECKS,
    HOST_MEMORY,
    KL,
    TIME,
    Index,
    loss_of,
    memory_of,
    package_name,
    sha256sums,
    slots_of,
)
from planner.package import Entry
from planner.request import Workload
from records.atomic import sha256
from records.errors import InputError, MissingError
from supernet.space import Choice, Subnet
from tests.planner.fleet.example import index
from tests.planner.packages import tiny_plan
from tests.planner.runtime_fixtures import RoundedModel, save_tiny


def test_an_index_round_trips(tmp_path: Path) -> None:
    made = index()
    made.save(tmp_path)
    assert Index.load(tmp_path) == Index.load(tmp_path / "index.json") == made


def test_every_device_with_a_package_has_every_slot() -> None:
    made = index()
    taken = [(device.package, device.name) for device in made.devices if device.package]
    assert [slot.key for slot in made.slots] == [
        (*one, check) for one in taken for check in CHECKS if check != HOST_MEMORY
    ]
    assert not any(slot.filled or slot.broken for slot in made.slots)
    kl, time = (next(slot for slot in made.slots if slot.check == check) for check in (KL, TIME))
    assert (kl.promised, kl.limit, kl.unit) == (0.01, None, "nats/token")
    assert (time.promised, time.limit, time.unit) == (None, 50.0, "ms")  # an estimate is no promise, a limit is one


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(kind="x"), "kind 'bitfleet index'"),
        (lambda data: data.update(schema=2), "schema 1"),
        (lambda data: data.update(more=1), "no field 'more'"),
        (lambda data: data.pop("packages"), "needs the field 'packages'"),
        (lambda data: data["packages"].append(data["packages"][0]), "there twice"),
        (lambda data: data["packages"].pop(0), "takes a package of the index"),
        (lambda data: data["slots"].append(data["slots"][0]), "has one slot"),
        (lambda data: data["slots"][0].update(device="other"), "'other' does not take 'smollm2"),
        (lambda data: data["slots"][0].update(device="desk"), "'desk' does not take 'smollm2"),
        (lambda data: data["slots"][0].update(manifest_sha256="0" * 64), "one of smollm2.* is of another"),
        (lambda data: data["slots"][0].update(check="speed"), "a slot checks one of"),
        (lambda data: data["packages"][0].update(name="../x"), "plain name"),
        (lambda data: data["packages"][0].update(manifest_sha256="x"), "64 hexadecimal digits"),
        (lambda data: data["packages"][0]["files"].update({"a\nb": {"sha256": "0" * 64, "bytes": 1}}), "plain name"),
        (lambda data: data["devices"][-1].update(refused=""), "or the reason why not"),
        (lambda data: data["model"].clear(), "the name of the model must be text"),
    ],
    ids=range(16),
)
def test_what_is_no_index_is_refused(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    data = json.loads(json.dumps(index().to_json()))
    change(data)
    (tmp_path / "index.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=said) as error:
        Index.load(tmp_path)
    assert str(error.value).endswith("make it again with `bitfleet fleet FILE --export DIR`")


def test_a_context_without_room_for_a_second_token_has_no_slot_for_its_time() -> None:
    made = index()
    device = next(one for one in made.devices if one.package is not None)
    full = replace(device, workload=Workload(130, prompt_tokens=129))
    checks = [slot.check for slot in slots_of(made.package(str(device.package)), full)]
    assert checks == [check for check in CHECKS if check not in (TIME, HOST_MEMORY)]


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no index at"):
        Index.load(tmp_path / "index.json")


def test_names_of_packages_say_what_they_are_and_stay() -> None:
    subnet, load = Subnet.of({"a": Choice(4, 32)}), Workload(4096)
    name = package_name("HuggingFaceTB/SmolLM2-135M", 3.94, subnet, "onnxruntime", load)
    assert re.fullmatch(r"smollm2-135m-3\.9bits-4096-[0-9a-f]{8}", name)
    assert name == package_name("HuggingFaceTB/SmolLM2-135M", 3.94, subnet, "onnxruntime", load)
    others = [
        package_name("SmolLM2-135M", 3.94, Subnet.of({"a": Choice(4, 64)}), "onnxruntime", load),
        package_name("SmolLM2-135M", 3.94, subnet, "other", load),
        package_name("SmolLM2-135M", 3.94, subnet, "onnxruntime", Workload(4096, 2)),
        package_name("SmolLM2-135M", 3.94, subnet, "onnxruntime", Workload(4096, kv_cache="int8")),
    ]
    assert len({name, *others}) == 5
    assert package_name("../\u00e9", 3.94, subnet, "onnxruntime", load).startswith("model-3.9bits")


def test_memory_and_loss_are_those_of_the_plan(tmp_path: Path) -> None:
    files = RoundedModel(save_tiny("llama", tmp_path / "model"))
    plan = tiny_plan(files)
    items = memory_of(plan, files.spec)
    assert sum(item.bytes for item in items) == plan.memory.total_bytes
    assert [item.name for item in items].count("linears") == 1
    assert list(items) == sorted(items, key=lambda item: -item.bytes)
    assert loss_of(plan.chosen).measured is False
    measured = replace(plan.chosen, measured={"kl": 0.2, "texts": {"prose": {"kl": 0.2, "kl_interval": 0.01}}})
    assert (loss_of(measured).kl, loss_of(measured).interval, loss_of(measured).measured) == (0.2, 0.01, True)


def test_sha256sum_accepts_the_sums(tmp_path: Path) -> None:
    made = index()
    packages = []
    for package in made.packages:
        folder = tmp_path / package.name
        folder.mkdir()
        for name in ("manifest.json", *package.files):
            (folder / name).write_text(package.name + name)
        files = {name: Entry(sha256(folder / name), (folder / name).stat().st_size) for name in package.files}
        packages.append(replace(package, files=files))
    text = sha256sums(tmp_path, replace(made, packages=tuple(packages)))
    (tmp_path / "SHA256SUMS").write_text(text)
    check = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(text.splitlines()) == sum(len(package.files) + 1 for package in packages)
    (tmp_path / packages[0].name / "model.onnx").write_text("other")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 1
