"""DeviceProfile: validation, JSON, files that are whole or say in one line what is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.device import Cache, Calibration, DeviceProfile, dump
from profiles.kernels import KernelEntry, KernelTable

ENTRY = KernelEntry("onnxruntime", 4, 64, 1, 576, 960, 2, 0.016, 0.015, 0.018, 40)
PROFILE = DeviceProfile(
    name="test-cpu",
    kind="cpu",
    vendor="AMD",
    model="AMD EPYC",
    memory_bytes=24 << 30,
    measured=True,
    source="bitfleet profile device",
    date="2026-11-22",
    architecture="x86_64",
    cores_physical=2,
    cores_logical=2,
    threads=2,
    clock_hz=2.6e9,
    instruction_sets=("avx2", "avx512_vnni"),
    caches=(Cache(2, "unified", 1 << 20, 2), Cache(3, "unified", 32 << 20, 1)),
    available_bytes=20 << 30,
    bandwidth_bytes_per_s=22.4e9,
    bandwidth_basis="measured",
    bandwidth_spread=0.03,
    kernels=KernelTable((ENTRY,), "2026-11-22", {"onnxruntime": "1.31.1"}),
    calibrations=(Calibration("onnxruntime", "base_memory", 34e6, "bytes"),),
    versions={"python": "3.11.7"},
)


def replaced(**changes: Any) -> DeviceProfile:
    return dataclasses.replace(PROFILE, **changes)


def test_json_round_trip_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    PROFILE.save(path)
    assert DeviceProfile.load(path) == PROFILE
    assert hash(DeviceProfile.load(path)) == hash(PROFILE)
    assert os.listdir(tmp_path) == ["device.json"]


def test_a_file_is_readable_one_line_a_measurement(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    PROFILE.save(path)
    lines = path.read_text().splitlines()
    assert any('"median_ms": 0.016' in line and '"in_features": 576' in line for line in lines)


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "device.json"
    PROFILE.save(path)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        replaced(name="other").save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["device.json"]


@pytest.mark.parametrize(
    ("available", "limit", "used", "usable"),
    [
        (None, None, None, 24 << 30),  # a catalogue entry: the total
        (20 << 30, None, None, 20 << 30),
        (20 << 30, 8 << 30, 1 << 30, 7 << 30),
        (2 << 30, 8 << 30, 1 << 30, 2 << 30),
        (20 << 30, 1 << 30, 2 << 30, 0),
        (20 << 30, 1 << 30, None, 1 << 30),
    ],
)
def test_usable_memory(available: int | None, limit: int | None, used: int | None, usable: int) -> None:
    profile = replaced(available_bytes=available, cgroup_limit_bytes=limit, cgroup_used_bytes=used)
    assert profile.usable_bytes == usable


def test_calibrations_are_found_by_runtime_and_name() -> None:
    found = PROFILE.calibration("onnxruntime", "base_memory")
    assert found is not None
    assert found.value == 34e6
    assert PROFILE.calibration("llamacpp", "base_memory") is None


def test_last_level_cache() -> None:
    assert PROFILE.last_level_cache_bytes == 32 << 20
    assert replaced(caches=()).last_level_cache_bytes is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "tpu"}, "kind must be one of cpu, cuda, vulkan, got 'tpu'"),
        ({"memory_bytes": 0}, "memory_bytes must be at least 1, got 0"),
        ({"memory_bytes": 8.5}, "memory_bytes must be an integer, got 8.5"),
        ({"available_bytes": -1}, "available_bytes must be at least 0, got -1"),
        ({"name": ""}, "name must be text, got ''"),
        ({"clock_hz": 0}, "clock_hz must be above 0, got 0"),
        ({"bandwidth_bytes_per_s": float("nan")}, "bandwidth_bytes_per_s must be finite, got nan"),
        ({"bandwidth_basis": None}, "given together or not at all"),
        ({"bandwidth_basis": "guess"}, "bandwidth_basis is measured, datasheet, theoretical or null, got 'guess'"),
        ({"schema": 2}, "schema must be 1, got 2"),
        ({"calibrations": PROFILE.calibrations * 2}, "once"),
    ],
)
def test_wrong_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as error:
        replaced(**changes)
    assert message in str(error.value)


def _one_line(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    for part in parts:
        assert part in message


def broken(data: dict[str, Any], *path: str | int, to: Any = None) -> dict[str, Any]:
    """A copy of `data` where the member at `path` is `to`, or gone."""
    data = json.loads(json.dumps(data))
    where: Any = data
    for step in path[:-1]:
        where = where[step]
    if to is None:
        del where[path[-1]]
    else:
        where[path[-1]] = to
    return data


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["not JSON"]),
        ("{", ["not JSON", "truncated"]),
        ("[]", ["is a JSON object", "holds a list"]),
        ("null", ["is a JSON object"]),
        (json.dumps({}), ["needs the field", "'memory_bytes'"]),
        (json.dumps(broken(PROFILE.to_json(), "memory_bytes")), ["needs the field 'memory_bytes'"]),
        (json.dumps(broken(PROFILE.to_json(), "colour", to="red")), ["has no field 'colour'"]),
        (
            json.dumps(broken(PROFILE.to_json(), "threads", to="two")),
            ["threads of a device profile", "must be an integer or null, got 'two'"],
        ),
        (
            json.dumps(broken(PROFILE.to_json(), "caches", 0, "level")),
            ["caches[0] of a device profile", "'level'"],
        ),
        (
            json.dumps(broken(PROFILE.to_json(), "kernels", to=[])),
            ["kernels of a device profile", "must be an object, got a list"],
        ),
        (json.dumps(broken(PROFILE.to_json(), "kernels", "entries", 0, "rows")), ["kernels.entries[0]", "'rows'"]),
        (json.dumps(broken(PROFILE.to_json(), "kernels", "entries", 0, "rows", to=0)), ["rows", "at least 1, got 0"]),
        (
            json.dumps(broken(PROFILE.to_json(), "calibrations", 0, "value", to="x")),
            ["calibrations[0].value of a device profile", "must be a number, got 'x'"],
        ),
        (
            json.dumps(broken(PROFILE.to_json(), "versions", to=["1"])),
            ["versions of a device profile", "must be an object, got a list"],
        ),
        (
            json.dumps(broken(PROFILE.to_json(), "measured", to=1)),
            ["measured of a device profile", "must be true or false, got 1"],
        ),
        (json.dumps(broken(PROFILE.to_json(), "schema", to=99)), ["schema must be 1, got 99"]),
    ],
)
def test_a_corrupt_file_is_one_line_with_the_next_step(tmp_path: Path, text: str, names: list[str]) -> None:
    path = tmp_path / "device.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=".") as error:
        DeviceProfile.load(path)
    _one_line(error.value, str(path), "bitfleet profile device --out", *names)


def test_binary_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    with pytest.raises(FileNotFoundError) as missing:
        DeviceProfile.load(path)
    _one_line(missing.value, str(path), "bitfleet profile device --out")
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="not JSON") as binary:
        DeviceProfile.load(path)
    _one_line(binary.value, str(path))
    with pytest.raises(FileNotFoundError):
        DeviceProfile.load(tmp_path)  # a folder


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(field=st.sampled_from([f.name for f in dataclasses.fields(DeviceProfile)]), value=JSON)
def test_any_value_in_any_field_loads_or_is_a_one_line_value_error(field: str, value: Any) -> None:
    data = json.loads(json.dumps({**PROFILE.to_json(), field: value}))
    try:
        profile = DeviceProfile.from_json(data)
    except ValueError as error:
        _one_line(error)
    else:
        assert DeviceProfile.from_json(json.loads(dump(profile.to_json()))) == profile


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_readable_json_is_json(value: Any) -> None:
    assert json.dumps(json.loads(dump(value))) == json.dumps(value)
