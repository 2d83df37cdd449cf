"""`bitfleet fleet` on a tiny supernet: what it prints and writes, and how it ends where something is wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from planner.fleet import export
from planner.fleet.index import INDEX, MEMORY, Index
from planner.fleet.receipts import FIRST, Receipt
from planner.rows import BROKEN, Row
from profiles.catalog import load
from records.errors import InputError
from records.lock import locked
from tests.conftest import Bitfleet
from tests.planner.fleet.test_export import InThisProcess
from tests.planner.fleet.trained import FLEET, tiny_supernet


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_supernet(tmp_path_factory.mktemp("net")).path


@pytest.fixture
def fleet(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setattr(export, "workers", InThisProcess)
    path = tmp_path / "fleet.toml"
    path.write_text(f'supernet = "{net}"\n{FLEET}')
    return path


def changed(fleet: Path, old: str, new: str) -> Path:
    text = fleet.read_text()
    assert old in text
    fleet.write_text(text.replace(old, new))
    return fleet


def test_rows_of_devices_and_of_packages(bitfleet: Bitfleet, fleet: Path) -> None:
    done = bitfleet("fleet", fleet, "--predict")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["DEVICE", "PACKAGE", "MEMORY", "LIMIT", "TIME", "PER", "TOKEN", "KL", "OWN", "BEST"]
    assert [line.split()[0] for line in lines[1:4]] == ["kiosk", "desk", "office"]
    assert lines[-1] == "2 packages for 3 devices, each within 5 % of its best: proven the fewest of those proposed"
    data = json.loads(bitfleet("fleet", fleet, "--predict", "--json").out)
    assert [device["package"] for device in data["devices"]] == [line.split()[1] for line in lines[1:4]]
    assert data["proven"] and data["problems"] == 2 and "index" not in data


def test_the_example_is_printed_and_can_be_read(bitfleet: Bitfleet, tmp_path: Path) -> None:
    from planner.fleet.fleetfile import read_fleet

    (tmp_path / "fleet.toml").write_text(bitfleet("fleet", "--example").out)
    assert len(read_fleet(tmp_path / "fleet.toml").devices) == 6


def test_a_fleet_of_one_device(bitfleet: Bitfleet, fleet: Path, net: Path, tmp_path: Path) -> None:
    fleet.write_text(f'supernet = "{net}"\n[[device]]\ndevice = "steam-deck-16gb"\nmem = "200MB"\ncontext = 128\n')
    done = bitfleet("fleet", fleet, "--predict", "--export", tmp_path / "dist")
    assert done.code == 0, done.err
    assert "1 package for 1 device, each within 5 % of its best" in done.out
    assert len(Index.load(tmp_path / "dist").packages) == 1


def test_a_device_that_is_not_served_is_said_and_the_exit_code_is_3(
    bitfleet: Bitfleet, fleet: Path, tmp_path: Path
) -> None:
    changed(fleet, '"90KB"', '"1KB"')
    done = bitfleet("fleet", fleet, "--predict", "--export", tmp_path / "dist")
    assert done.code == 3
    assert (
        'not served: kiosk: disk of 1 KB cannot be met, the smallest plan needs 68.36 KB of disk; use disk = "'
        in done.out
    )
    kiosk, *others = Index.load(tmp_path / "dist").devices
    assert kiosk.package is None and "disk of 1 KB" in kiosk.refused and all(other.package for other in others)


def test_a_fleet_of_which_no_device_is_served(bitfleet: Bitfleet, fleet: Path, tmp_path: Path) -> None:
    changed(fleet, '"200MB"', '"10MB"')
    done = bitfleet("fleet", fleet, "--predict", "--export", tmp_path / "dist", "--verify")
    assert done.code == 3 and done.out.count("not served: ") == 3 and "DEVICE" not in done.out
    index = Index.load(tmp_path / "dist")
    assert index.packages == () and len(index.devices) == 3
    assert (tmp_path / "dist" / "SHA256SUMS").read_text() == ""
    assert "not served" in (tmp_path / "dist" / "index.html").read_text().lower()


def test_a_device_of_unknown_speed_stops_nobody(bitfleet: Bitfleet, fleet: Path) -> None:
    changed(fleet, '"raspberry-pi-5-8gb"', '{ kind = "cpu", memory = "8GB" }')
    done = bitfleet("fleet", fleet, "--predict")
    assert done.code == 3
    assert "not served: kiosk: latency needs a measured or published speed" in done.out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--verify"], "are of an export; give --export DIR"),
        (["--baseline", "index.json"], "are of an export; give --export DIR"),
        (["--html", "page.html"], "are of an export; give --export DIR"),
        (["--export", "d", "--baseline", "no.json"], "no index at no.json"),
        (["--export", "d", "--baseline", "fleet.toml"], "is not JSON that is read here"),
        (["--export", "d", "--allow", "-1%"], "--allow must be a share such as 2%, got '-1%'"),
        (["--export", "d", "--allow", "nan"], "--allow must be a share such as 2%"),
        (["--export", "d", "--html", "no/page.html"], "give another --html"),
        (["--export", "fleet.toml"], "give another --export"),
        (["--export", "fleet.toml/d"], "give another --export"),
        (["--export", "site"], "is of no export and would be replaced"),
        (["--supernet", "no-such-folder"], "no-such-folder"),
        (["--supernet", "site"], "site"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line_before_the_work(
    bitfleet: Bitfleet, fleet: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    monkeypatch.chdir(fleet.parent)
    Path("site").mkdir()
    Path("site", "index.html").write_text("mine")
    before = sorted(Path().rglob("*"))
    done = bitfleet("fleet", fleet.name, "--predict", *options)
    assert done.code == 2 and told in done.error
    assert sorted(Path().rglob("*")) == before and "searching" not in done.err


def test_without_a_file_or_with_a_wrong_one(bitfleet: Bitfleet, fleet: Path) -> None:
    assert "bitfleet fleet --example > fleet.toml" in bitfleet("fleet").error
    assert bitfleet("fleet", fleet.parent / "no.toml").code == 2
    changed(fleet, "disk =", "disc =")
    assert "did you mean 'disk'?" in bitfleet("fleet", fleet).error


def test_a_supernet_that_serves_nobody_is_an_error_and_no_refusal(
    bitfleet: Bitfleet, fleet: Path, net: Path, tmp_path: Path
) -> None:
    shutil.copytree(net, tmp_path / "other")
    path = tmp_path / "other" / "sensitivity.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "supernet": "0" * 16}))
    done = bitfleet("fleet", fleet, "--predict", "--supernet", tmp_path / "other")
    assert done.code == 2 and "sensitivities are of weights that have changed" in done.error


def test_a_supernet_that_may_only_be_read(
    bitfleet: Bitfleet, fleet: Path, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written into it. Rights say nothing to root, so the whole folder is compared."""
    shutil.copytree(net, tmp_path / "net")
    for path in [tmp_path / "net", *(tmp_path / "net").rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, *mode: "net" not in Path(path).parts and access(path, *mode))
    done = bitfleet("fleet", fleet, "--supernet", tmp_path / "net", "--export", tmp_path / "dist")
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "net").iterdir()} - {"evaluations.json"}
    assert names == {path.name for path in net.iterdir()} - {"evaluations.json"}


def test_an_export_is_compared_with_its_baseline(bitfleet: Bitfleet, fleet: Path, tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    page = tmp_path / "page.html"
    first = bitfleet("fleet", fleet, "--predict", "--export", dist, "--html", page)
    assert first.code == 0 and page.read_text() == (dist / "index.html").read_text()
    same = bitfleet("fleet", fleet, "--predict", "--export", dist, "--baseline", dist)
    assert same.code == 0 and "no difference from the baseline beyond what is allowed" in same.out
    assert "wrote 0 packages, 2 were there" in same.err
    baseline = json.loads((dist / INDEX).read_text())
    baseline["devices"][1]["disk_bytes"] //= 2
    (tmp_path / "old.json").write_text(json.dumps(baseline))
    options = ("fleet", fleet, "--predict", "--export", dist, "--baseline", tmp_path / "old.json")
    worse = bitfleet(*options, "--json")
    assert worse.code == 1
    (difference,) = json.loads(worse.out)["index"]["differences"]
    assert difference["line"].startswith("desk: bigger, disk ") and difference["worse"]
    assert bitfleet(*options, "--allow", "110%").code == 0
    changed(fleet, 'name = "office"', 'name = "bureau"')
    gone = bitfleet("fleet", fleet, "--predict", "--export", dist, "--baseline", dist)
    assert gone.code == 1 and "office: is no longer in the fleet" in gone.out and "bureau: is new" in gone.out


def test_what_was_measured_is_kept_while_it_is_of_the_same_files(
    bitfleet: Bitfleet, fleet: Path, tmp_path: Path
) -> None:
    dist = tmp_path / "dist"
    options = ("fleet", fleet, "--predict", "--export", dist)
    assert bitfleet(*options).code == 0
    index = Index.load(dist)
    package, device = index.packages[0], index.devices[0]
    made = Receipt(
        package.name, package.manifest_sha256, {n: e.sha256 for n, e in package.files.items()}, "kiosk", device.device,
        {}, "2026-12-02T08:00:00+00:00", (Row(MEMORY, "bytes", 1e8, 5e7),),
    )  # fmt: skip
    made.save(tmp_path / "r.json")
    assert bitfleet("fleet", "accept", dist, tmp_path / "r.json").code == 0
    filled = [slot for slot in Index.load(dist).slots if slot.measured is not None]
    assert [slot.check for slot in filled] == [MEMORY]
    assert bitfleet(*options).code == 0
    assert [slot for slot in Index.load(dist).slots if slot.measured is not None] == filled
    changed(fleet, '"200MB"', '"190MB"')  # another limit
    assert bitfleet(*options).code == 0
    assert all(slot.measured is None for slot in Index.load(dist).slots)


@pytest.mark.parametrize(
    ("found", "code", "told"),
    [
        (Row("tokenizer", "count", 58, 57, verdict=BROKEN), 1, "loads is broken: tokenizer: broken"),
        (Row(FIRST, "ms", 58, 99, verdict=BROKEN, note="twice"), 1, "time to first token is broken: twice"),
        (InputError("it has no room"), 1, "loads is broken: it has no room"),
        (Row("tokenizer", "count", 58, 58), 0, ""),
    ],
    ids=["its tokens", "its first token", "it does not load", "all holds"],
)
def test_what_verify_finds_decides(
    bitfleet: Bitfleet, fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Any, code: int, told: str
) -> None:
    from planner import verify

    def verified(*given: Any, **options: Any) -> Any:
        if isinstance(found, Exception):
            raise found
        return verify.VerifyReport("x", (found,))

    monkeypatch.setattr(verify, "verify", verified)
    done = bitfleet("fleet", fleet, "--predict", "--export", tmp_path / "dist", "--verify")
    assert done.code == code and told in done.out + done.err
    loads = [slot for slot in Index.load(tmp_path / "dist").slots if slot.check == "loads"]
    assert all(slot.filled and slot.broken == ("loads is broken" in told) for slot in loads)


def test_a_package_that_this_machine_has_no_memory_for_is_not_verified(
    bitfleet: Bitfleet, fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from profiles import cpu

    small = replace(cpu.profile_cpu(measure_bandwidth=False), available_bytes=10**7)
    monkeypatch.setattr(cpu, "profile_cpu", lambda measure_bandwidth=True: small)
    done = bitfleet("fleet", fleet, "--predict", "--export", tmp_path / "dist", "--verify")
    assert done.code == 0 and done.err.count("not verified here: ") == 2
    assert "of memory, this machine has 10.0 MB" in done.err


def test_two_exports_at_once(bitfleet: Bitfleet, fleet: Path, tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    with locked(tmp_path / "dist" / INDEX, "another export"):
        done = bitfleet("fleet", fleet, "--predict", "--export", tmp_path / "dist")
    assert done.code == 2 and "another export is at work in" in done.error
    assert list((tmp_path / "dist").iterdir()) == []


HOSTED = """\
[defaults]
context = 128
prompt-tokens = 64
runtime = "llamacpp"
[[device]]
name = "gaming"
device = "rtx-4060-8gb"
mem = "7GB"
host = "desktop-ryzen-5600-16gb"
host-mem = "4GB"
gpu-layers = 2
[[device]]
name = "desk"
device = "desktop-ryzen-5600-16gb"
mem = "90GB"
context = "max"
"""


def test_a_gpu_and_its_host(bitfleet: Bitfleet, fleet: Path, net: Path, tmp_path: Path) -> None:
    fleet.write_text(f'supernet = "{net}"\n{HOSTED}')
    dist = tmp_path / "dist"
    options = ("fleet", fleet, "--predict", "--export", dist, "--html", tmp_path / "page.html")
    done = bitfleet(*options)
    assert done.code == 0, done.err
    header, gaming, desk, *_ = done.out.splitlines()
    assert all(said in header for said in ("HOST MEMORY", "HOST LIMIT", "LAYERS ON GPU", "CONTEXT"))
    assert "4.0 GB" in gaming and "2 of " in gaming and "GB" in desk
    assert "note: desk: the memory budget of 90 GB exceeds the " in done.out
    index = Index.load(dist)
    device = next(one for one in index.devices if one.name == "gaming")
    package = index.package(str(device.package))
    assert (device.workload.gpu_layers, device.budget.host_memory_bytes) == (2, 4 * 10**9)
    assert device.layers is not None and device.device.host == load("desktop-ryzen-5600-16gb").model
    assert device.host_memory_bytes == sum(item.bytes for item in package.host_memory) > 0
    page = (tmp_path / "page.html").read_text()
    assert f"2 of {device.layers} layers on the GPU" in page and "Peak memory of the host by item" in page
    opened = {slot.check: slot for slot in index.slots if slot.device == "gaming"}
    assert opened["peak host memory"].limit == 4e9
    required = bitfleet("fleet", "accept", dist, "--require")
    assert required.code == 1 and f"{package.name} on gaming: peak host memory is open" in required.out
    assert "wrote 0 packages, 2 were there" in bitfleet(*options).err
    changed(fleet, "gpu-layers = 2", "gpu-layers = 1")
    again = bitfleet(*options, "--baseline", dist)
    assert "wrote 1 package, 1 were there" in again.err and f"{package.name} is no package of this fleet" in again.err
    changed(fleet, 'host-mem = "4GB"', 'host-mem = "3GB"')
    assert "wrote 0 packages, 2 were there" in bitfleet(*options).err
    served = next(one for one in Index.load(dist).devices if one.name == "gaming")
    assert served.budget.host_memory_bytes == 3 * 10**9


def test_scales_are_tuned_once_for_all_who_take_a_subnet(
    bitfleet: Bitfleet, fleet: Path, net: Path, tmp_path: Path
) -> None:
    own, dist = shutil.copytree(net, tmp_path / "net"), tmp_path / "dist"
    asked = ("fleet", fleet, "--supernet", own, "--tune-steps", 8)
    plain = json.loads(bitfleet("fleet", fleet, "--supernet", own, "--json").out)
    done = bitfleet(*asked, "--export", dist, "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    subnets = {json.dumps(one["plan"]["compared"][0]["subnet"]) for one in made["devices"]}
    assert done.err.count("tuning subnet ") == len(subnets) == 2
    files = set()
    for before, now in zip(plain["devices"], made["devices"], strict=True):
        assert now["package"] == before["package"]
        tuned = now["plan"]["tuned"]
        assert tuned["before"] == before["plan"]["compared"][0]["measured"]
        assert now["kl"] == now["plan"]["compared"][0]["measured"]["kl"] < before["kl"]
        files.add(tuned["sha256"])
    assert {path.name for path in (own / "tuned").glob("*.safetensors")} >= {f"{one[:16]}.safetensors" for one in files}
    package = dist / made["devices"][0]["package"]
    report = json.loads(bitfleet("verify", package, "--supernet", own, "--json").out)
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["KL to the supernet"]["holds"] is True
    again = bitfleet(*asked, "--export", dist)
    assert again.err.count("were tuned before") == 2 and "2 were there" in again.err
    assert again.out.count("tuned for this plan alone in 8 steps") == 2


def test_tuning_a_fleet_needs_measuring(bitfleet: Bitfleet, fleet: Path) -> None:
    assert "--predict measures nothing: give one of them" in bitfleet("fleet", fleet, "--predict", "--tune", 1).err
