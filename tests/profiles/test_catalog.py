"""Every entry of the catalogue is complete enough to plan for, and says where it comes from."""

from __future__ import annotations

import datetime
import json
import re
from importlib.resources import files
from urllib.parse import urlsplit

import pytest

from profiles import catalog
from profiles.device import KINDS, DeviceProfile, dump
from profiles.roofline import peak_ops_per_s, roofline

MAKERS = {
    "NVIDIA": "nvidia.com", "AMD": "amd.com", "Intel": "intel.com", "Apple": "apple.com", "Valve": "steamdeck.com",
    "Raspberry Pi": "raspberrypi.com", "AWS": "wikichip.org",
}  # fmt: skip
"""Whose page an entry is from; AWS publishes no datasheet of its processors."""
ARCHITECTURES = re.compile(r"x86_64|aarch64|arm64|sm_(70|75|80|86|87|89|90|100|110|120|121)|rdna[34]|xe2")
SECONDS_TO_READ = {"cpu": (0.05, 3.0), "cuda": (0.01, 1.0), "vulkan": (0.01, 1.0)}
"""All of its memory once, by kind: what has more memory is faster, or somebody mistook a unit."""


def test_enough_servers_and_consumer_devices() -> None:
    entries = [catalog.load(name) for name in catalog.names()]
    assert len(entries) >= 70
    assert {entry.kind for entry in entries} == {*KINDS}
    assert {entry.vendor for entry in entries} == {*MAKERS}
    assert sum(entry.vendor == "Apple" for entry in entries) >= 15
    assert len({entry.model for entry in entries}) == len(entries)


@pytest.mark.parametrize("name", catalog.names())
def test_entry(name: str) -> None:
    device = catalog.load(name)
    assert device.name == name
    assert not device.measured
    assert not device.kernels
    assert not device.calibrations
    assert device.source.startswith("https://")
    assert urlsplit(device.source).hostname in (host := MAKERS[device.vendor], f"www.{host}", f"en.{host}") or (
        str(urlsplit(device.source).hostname).endswith(f".{host}")
    )
    assert ARCHITECTURES.fullmatch(str(device.architecture))
    assert device.kind != "cuda" or str(device.architecture).startswith("sm_")
    least, most = SECONDS_TO_READ[device.kind]
    assert least < device.memory_bytes / (device.bandwidth_bytes_per_s or 0) < most or device.shares_memory
    peaks = [peak for peak in (device.fp32_ops_per_s, device.bf16_ops_per_s, device.int8_ops_per_s) if peak]
    assert peaks == sorted(peaks)  # narrower types are faster
    assert device.kind == "cpu" or peaks
    assert datetime.date.fromisoformat(device.date) >= datetime.date(2026, 1, 1)
    assert device.memory_bytes >= 4 << 30
    assert device.available_bytes is None
    assert device.usable_bytes == device.memory_bytes
    assert device.bandwidth_basis == "datasheet"
    assert 5e9 < (device.bandwidth_bytes_per_s or 0) < 1e13
    if device.kind == "cpu":
        assert device.cores_physical
        assert device.threads
        assert device.threads <= device.cores_physical <= (device.cores_logical or 0)
        assert device.instruction_sets


@pytest.mark.parametrize("name", catalog.names())
def test_every_entry_has_an_estimated_latency(name: str) -> None:
    device = catalog.load(name)
    precision = "int8" if device.kind == "cpu" else "bf16"
    decode = roofline(device, 4096 * 4096 * 0.56, 2 * 4096 * 4096, precision)
    prefill = roofline(device, 4096 * 4096 * 0.56, 2 * 4096 * 4096 * 2048, precision)
    assert decode is not None
    assert prefill is not None
    assert decode.basis == prefill.basis == "roofline"
    assert decode.ms < prefill.ms
    assert decode.spread >= 0.5


@pytest.mark.parametrize("name", catalog.names())
def test_the_file_is_what_save_would_write(name: str) -> None:
    text = (files("profiles.catalog") / f"{name}.json").read_text(encoding="utf-8")
    assert text == dump(DeviceProfile.from_json(json.loads(text)).to_json()) + "\n"


def test_wider_types_stand_in_for_unpublished_peaks() -> None:
    device = catalog.load("rtx-3060-12gb")
    assert device.bf16_ops_per_s is None
    assert peak_ops_per_s(device, "bf16") == device.fp32_ops_per_s
    assert peak_ops_per_s(catalog.load("raspberry-pi-5-8gb"), "fp32") is None
    with pytest.raises(ValueError, match="precision must be one of"):
        peak_ops_per_s(device, "int4")


@pytest.mark.parametrize(
    ("name", "near"),
    [("rtx4090", "rtx-4090-24gb"), ("H100", "h100-sxm-80gb"), ("raspberry-pi", "raspberry-pi-5-8gb")],
)
def test_an_unknown_name_lists_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=near) as error:
        catalog.load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "zzzzzzzz", "../device", "l4-24gb.json/../.."])
def test_a_strange_name_points_at_the_list(name: str) -> None:
    with pytest.raises(ValueError, match="no device is called"):
        catalog.load(name)
