"""Receipts: of exactly the files of an index, from the machine that a number is for, the newest one."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import outcome
from commands.fleet_accept import accept as accept_command
from planner.answers import TO_SUBNET
from planner.fleet.index import KL, LOADS, MEMORY, TIME, Device, Index, Slot
from planner.fleet.receipts import Receipt, accept, not_loaded, open_slots
from planner.rows import BROKEN, Row
from profiles.catalog import load
from records.atomic import sha256
from records.errors import InputError, SystemFailure
from tests.planner.fleet.example import index
from tests.planner.packages import tiny_package

PI, LAPTOP = Device.of(load("raspberry-pi-5-8gb")), Device.of(load("laptop-i5-1240p-8gb"))
ROWS = (
    Row(LOADS, "", 1.0, 1.0),
    Row(MEMORY, "bytes", 2.5e8, 2.2e8),
    Row(TIME, "ms", 31.4, 30.0),
    Row(TO_SUBNET, "nats/token", 0.01, 1e-6),
)
DATE = "2026-12-02T08:00:00+00:00"


def receipt(made: Index, number: int = 0, machine: Device = PI, **changes: Any) -> Receipt:
    """Of the package of that number; the first is for two devices of which a Raspberry Pi is the model."""
    package = made.packages[number]
    files = {name: entry.sha256 for name, entry in package.files.items()}
    one = Receipt(package.name, package.manifest_sha256, files, "planned", machine, {"onnxruntime": "1.31"}, DATE, ROWS)
    return replace(one, **changes)


def of(made: Index, device: str) -> dict[str, Slot]:
    return {slot.check: slot for slot in made.slots if slot.device == device}


def test_a_receipt_round_trips_and_its_digest_is_that_of_its_file(tmp_path: Path) -> None:
    made = receipt(index())
    made.save(tmp_path / "r.json")
    assert Receipt.load(tmp_path / "r.json") == made
    assert hashlib.sha256((tmp_path / "r.json").read_bytes()).hexdigest() == made.sha256


def test_slots_are_filled_for_every_device_of_the_same_model() -> None:
    made = accept(index(), [receipt(index())])
    for name in ("raspberry-pi-5-8gb", "small-pi"):
        slots = of(made, name)
        assert [slots[check].measured for check in (LOADS, KL, MEMORY, TIME)] == [1.0, 1e-6, 2.2e8, 30.0]
        assert all(slot.filled and not slot.broken for slot in slots.values())
        assert slots[TIME].receipt is not None and slots[TIME].receipt.machine == PI
    assert not any(slot.receipt for slot in of(made, "kiosk").values())
    lines = [line for _, line in open_slots(made)]
    assert len(lines) == sum(slot.holds_something for slot in made.slots) - 7  # one of these has no limit on time
    assert all("is open" in line for line in lines)


def test_a_time_of_another_machine_is_shown_and_answers_nothing() -> None:
    made = accept(index(), [receipt(index(), machine=LAPTOP)])
    slots = of(made, "raspberry-pi-5-8gb")
    assert slots[LOADS].filled and slots[KL].filled
    assert not slots[MEMORY].filled and not slots[TIME].filled  # another architecture
    assert slots[TIME].measured == 30.0
    lines = [line for slot, line in open_slots(made) if slot.key == slots[TIME].key]
    where = f"measured on another machine: {LAPTOP.model}"
    assert lines == [f"{slots[TIME].package} on raspberry-pi-5-8gb: time per token is open ({where})"]
    desktop = Device.of(load("desktop-ryzen-7950x-64gb"))
    slots = of(accept(index(), [receipt(index(), 1, desktop)]), "kiosk")
    assert slots[MEMORY].filled and not slots[TIME].filled  # the same architecture


def test_whoever_measures_may_say_which_device_it_is() -> None:
    other = replace(PI, model="Cortex-A76")
    made = accept(index(), [receipt(index(), machine=other, device="small-pi")])
    assert of(made, "small-pi")[TIME].filled
    assert not of(made, "raspberry-pi-5-8gb")[TIME].filled
    with pytest.raises(InputError, match="says to be from 'other', which is no device of this index"):
        accept(index(), [receipt(index(), device="other")])


def test_what_is_broken_is_by_the_numbers_of_the_slot() -> None:
    slow = (*ROWS[:2], Row(TIME, "ms", 31.4, 60.0), Row(TO_SUBNET, "nats/token", 0.01, 0.5, verdict=BROKEN, note="far"))
    made = accept(index(), [receipt(index(), rows=slow)])
    slots = of(made, "raspberry-pi-5-8gb")
    assert slots[TIME].broken and slots[KL].broken and not slots[MEMORY].broken
    assert of(made, "small-pi")[TIME].broken is False  # nobody limited it, and an estimate is no promise
    lines = [line for slot, line in open_slots(made) if slot.device == "raspberry-pi-5-8gb"]
    assert lines == [f"{slots[KL].package} on raspberry-pi-5-8gb: kl is broken: far",
                     f"{slots[TIME].package} on raspberry-pi-5-8gb: time per token is broken"]  # fmt: skip


def test_what_no_slot_is_for_breaks_a_package_as_well() -> None:
    text = Row("greedy text", "tokens", 64, 3, verdict=BROKEN, note="as the subnet")
    first = Row("time to first token", "ms", 1.0, 9.0, verdict=BROKEN)
    made = accept(index(), [receipt(index(), rows=(*ROWS, text, first))])
    slots = of(made, "small-pi")
    assert slots[LOADS].broken and not slots[KL].broken
    lines = [line for slot, line in open_slots(made) if slot.key == slots[LOADS].key]
    assert lines == [f"{slots[LOADS].package} on small-pi: loads is broken: greedy text: broken"]
    made = accept(index(), [receipt(index(), rows=(*ROWS, first))])  # of that machine alone
    assert of(made, "small-pi")[LOADS].state == "holds"


def test_what_could_not_be_checked_fills_nothing() -> None:
    rows = (*ROWS[:2], Row(TIME, "ms", 31.4, 60.0, verdict=None, note="this machine is slower"))
    slot = of(accept(index(), [receipt(index(), rows=rows)]), "raspberry-pi-5-8gb")[TIME]
    assert slot.receipt is not None and slot.receipt.note == "this machine is slower"
    assert not slot.filled and not slot.broken


def test_a_package_that_does_not_load_is_broken() -> None:
    made = accept(index(), [receipt(index(), rows=not_loaded("it needs more memory"))])
    slots = of(made, "small-pi")
    assert slots[LOADS].broken and slots[LOADS].measured == 0.0
    assert not slots[KL].filled


def test_the_newest_stays_whatever_the_order() -> None:
    newer = receipt(index(), date="2026-12-03T08:00:00+00:00", rows=(Row(TIME, "ms", 31.4, 20.0),))
    elsewhere = receipt(index(), machine=LAPTOP, date="2026-12-04T08:00:00+00:00", rows=(Row(TIME, "ms", 31.4, 5.0),))
    for order in ([receipt(index()), newer, elsewhere], [elsewhere, newer, receipt(index())]):
        assert of(accept(index(), order), "small-pi")[TIME].measured == 20.0


def test_a_receipt_of_other_files_is_refused() -> None:
    name = index().packages[0].name
    with pytest.raises(
        InputError, match=f"the receipt of {name} from {DATE[:4]}.* is of the manifest 000000000000, whose"
    ):
        accept(index(), [receipt(index(), manifest_sha256="0" * 64)])
    with pytest.raises(InputError, match="the receipt of other from .*, which this index does not list"):
        accept(index(), [receipt(index(), package="other", manifest_sha256="0" * 64)])
    with pytest.raises(InputError, match="not of the files that this index lists"):
        accept(index(), [receipt(index(), files={"model.onnx": "0" * 64})])


def test_no_receipt_is_refused_in_one_line(tmp_path: Path) -> None:
    data = receipt(index()).to_json()
    for change in ({"kind": "x"}, {"date": "yesterday"}, {"date": "2026-12-01"}, {"rows": 1}, {"more": 1}):
        (tmp_path / "r.json").write_text(json.dumps({**data, **change}))
        with pytest.raises(InputError, match="verify PACKAGE --receipt FILE") as error:
            Receipt.load(tmp_path / "r.json")
        assert "\n" not in str(error.value)


def test_accept_requires_that_all_is_measured_and_kept(tmp_path: Path) -> None:
    made = index()
    made.save(tmp_path)
    runner = CliRunner()

    def run(*arguments: str) -> tuple[int, str]:
        done = runner.invoke(accept_command, [str(tmp_path), *arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    code, said = run("--require")
    assert code == 1 and "is open" in said
    paths = []
    for number, device in enumerate(one for one in made.devices if one.package):
        package = next(p for p, one in enumerate(made.packages) if one.name == device.package)
        limit = next(slot for slot in made.slots if slot.device == device.name and slot.check == TIME).limit
        rows = (ROWS[0], Row(MEMORY, "bytes", 1.0, 1e8), Row(TIME, "ms", 1.0, limit or 9.0), ROWS[3])
        paths.append(str(tmp_path / f"r{number}.json"))
        receipt(made, package, device=device.name, rows=rows).save(Path(paths[-1]))
    code, said = run(*paths[:-1])
    assert code == 0 and "of 28 slots are open or broken" in said
    code, said = run(paths[-1], "--require")
    assert code == 0 and "every promise is measured and kept" in said
    assert (tmp_path / "index.html").is_file()
    assert run("--require")[0] == 0


def test_verify_writes_a_receipt_whatever_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package, out = tiny_package(tmp_path, others=("desk",)), tmp_path / "r.json"
    command = ["verify", str(package.path), "--receipt", str(out)]
    code = outcome([*command, "--device", "desk", "--allow-unchecked"])
    made = Receipt.load(out)
    assert code == (1 if any(row.verdict == BROKEN for row in made.rows) else 0)
    assert made.manifest_sha256 == sha256(package.path / "manifest.json")
    assert made.files == {name: sha256(package.path / name) for name in package.files}
    assert (made.package, made.planned_for, made.device) == ("package", "desk", "desk")
    assert {LOADS, MEMORY, TIME, TO_SUBNET} <= {row.name for row in made.rows}
    assert made.machine.kind == "cpu" and made.versions["onnxruntime"]
    assert platform.node() not in out.read_text() and str(tmp_path) not in out.read_text()

    def fails(*_: object, **__: object) -> None:
        raise SystemFailure("the package needs more memory than there is")

    monkeypatch.setattr("planner.verify.verify", fails)
    assert outcome(command) == 5
    loads = Receipt.load(out).row(LOADS)
    assert loads is not None and (loads.verdict, loads.note) == (BROKEN, "the package needs more memory than there is")
    out.unlink()
    (package.path / "tokenizer.json").write_text("{}")
    assert outcome(command) == 2  # damaged: of these hashes there is nothing to say
    assert not out.exists()
    capsys.readouterr()
    assert outcome(["verify", str(package.path), "--device", "shelf"]) == 2
    assert "is made for test, desk, got 'shelf'; give one of them" in capsys.readouterr().err
