"""Receipts: what was measured of a package where it landed, and the slots of an index that such numbers fill.

Whether a package loads, and its KL to its subnet, are the same on every machine; memory is nearly, between machines of
one architecture; a time is a machine's own. So a time fills the slot of a device on that device alone, memory on its
architecture. What was measured elsewhere is kept and shown, and answers nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from planner.answers import TO_SUBNET
from planner.fleet.index import HOST_MEMORY, KL, LOADS, MEMORY, TIME, Device, Filled, Index, Served, Slot, check_date
from planner.package import MANIFEST, Package
from planner.rows import BROKEN, HOLDS, Row
from records.atomic import sha256, write_text
from records.errors import InputError
from records.reading import as_record, read_record

KIND = "bitfleet receipt"
SCHEMA = 1
_REMAKE = "make it again with `bitfleet verify PACKAGE --receipt FILE`"
_ROWS = {LOADS: LOADS, KL: TO_SUBNET, MEMORY: MEMORY, HOST_MEMORY: HOST_MEMORY, TIME: TIME}
"""Which row of a check fills a slot."""
FIRST = "time to first token"
"""A row that is promised and that no slot is for."""


@dataclass(frozen=True)
class Receipt:
    """What `verify` found on one machine. `files` are SHA-256 by name, `planned_for` is the device whose promises the
    rows hold, and `device` the one of the fleet that this machine is, where whoever ran it said so."""

    package: str
    manifest_sha256: str
    files: Mapping[str, str] = field(hash=False)
    planned_for: str
    machine: Device
    versions: Mapping[str, str] = field(hash=False)
    date: str
    rows: tuple[Row, ...]
    device: str = ""

    def __post_init__(self) -> None:
        check_date(self.date)

    def row(self, check: str) -> Row | None:
        return next((row for row in self.rows if row.name == _ROWS[check]), None)

    def to_json(self) -> dict[str, Any]:
        return {"kind": KIND, "schema": SCHEMA, **asdict(self)}

    @property
    def text(self) -> str:
        return json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"

    @property
    def sha256(self) -> str:
        """Of the file that `save` writes."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Receipt:
        """InputError for anything that `to_json` did not write."""
        if data.get("kind") != KIND or data.get("schema") != SCHEMA:
            raise InputError(f"a receipt says kind {KIND!r} and schema {SCHEMA}, this does not")
        values = {key: value for key, value in data.items() if key not in ("kind", "schema")}
        return cast(Receipt, as_record(cls, values, "a receipt"))

    def save(self, path: Path) -> None:
        write_text(path, self.text)

    @classmethod
    def load(cls, path: Path) -> Receipt:
        """MissingError or InputError, one line with the next step."""
        return read_record(path, cls, "receipt", _REMAKE)


def receipt_of(
    package: Package, machine: Device, versions: Mapping[str, str], rows: Sequence[Row], device: str = ""
) -> Receipt:
    """Of a package that was loaded and checked here and now."""
    loaded = Row(LOADS, "", 1.0, 1.0)
    return Receipt(
        package=package.path.name,
        manifest_sha256=sha256(package.path / MANIFEST),
        files={name: entry.sha256 for name, entry in package.files.items()},
        planned_for=package.plan.device["name"],
        machine=machine,
        versions=versions,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=tuple(rows) if any(row.name == LOADS for row in rows) else (loaded, *rows),
        device=device,
    )


def not_loaded(why: str) -> tuple[Row, ...]:
    """The rows of a whole package that could not be loaded or served."""
    return (Row(LOADS, "", 1.0, 0.0, verdict=BROKEN, note=why),)


def accept(index: Index, receipts: Sequence[Receipt]) -> Index:
    """The index with the slots that the receipts fill; of two for a slot the newest stays, among those that count.

    InputError, saying which package it is of, for a receipt of other hashes than those of the index.
    """
    devices = {device.name: device for device in index.devices}
    slots = index.slots
    for receipt in receipts:
        _check(index, receipt)
        slots = tuple(_filled(slot, devices[slot.device], receipt) for slot in slots)
    return replace(index, slots=slots)


def kept(index: Index, before: Index | None) -> Index:
    """The index with what was measured for the one `before` it, where that still answers: of the same files, with the
    same limits and promises, for a device that is what it was."""
    if before is None:
        return index
    known = {slot.key: slot for slot in before.slots if slot.receipt is not None}
    was, now = ({one.name: one.device for one in made.devices} for made in (before, index))

    def of(slot: Slot) -> Slot:
        old = known.get(slot.key)
        same = old is not None and replace(old, measured=None, receipt=None) == slot
        return old if old is not None and same and was[slot.device] == now[slot.device] else slot

    return replace(index, slots=tuple(map(of, index.slots)))


def _check(index: Index, receipt: Receipt) -> None:
    what = f"the receipt of {receipt.package:.80} from {receipt.date}"
    package = next((one for one in index.packages if one.manifest_sha256 == receipt.manifest_sha256), None)
    if package is None:
        same = next((one for one in index.packages if one.name == receipt.package), None)
        other = f", whose manifest here is {same.manifest_sha256[:12]}" if same else ", which this index does not list"
        raise InputError(
            f"{what} is of the manifest {receipt.manifest_sha256[:12]:.80}{other}; verify a package of this index"
        )
    if receipt.files != {name: entry.sha256 for name, entry in package.files.items()}:
        raise InputError(f"{what} is not of the files that this index lists for {package.name}; verify it again")
    if receipt.device and not any(one.name == receipt.device for one in index.devices):
        names = ", ".join(one.name for one in index.devices[:8])
        raise InputError(f"{what} says to be from {receipt.device!r:.80}, which is no device of this index: {names}")


def _filled(slot: Slot, device: Served, receipt: Receipt) -> Slot:
    row = receipt.row(slot.check) if slot.manifest_sha256 == receipt.manifest_sha256 else None
    if row is None or row.measured is None:
        return slot
    here, fault = answers(slot.check, receipt, device), _fault(receipt) if slot.check == LOADS else ""
    broken = _breaks(slot, row) or bool(fault)
    found = Filled(
        date=receipt.date,
        machine=receipt.machine,
        versions=receipt.versions,
        sha256=receipt.sha256,
        counts=here and not row.open,
        broken=broken,
        note=fault or (row.note if row.open or broken else "" if here else "measured on another machine"),
    )
    known = slot.receipt
    if known is not None and _rank(known) > _rank(found):
        return slot
    return replace(slot, measured=row.measured, receipt=found)


def _rank(filled: Filled) -> tuple[bool, datetime]:
    return filled.counts, datetime.fromisoformat(filled.date)


def _breaks(slot: Slot, row: Row) -> bool:
    """By the slot's own numbers: the row's are of the device that the package was planned for."""
    assert row.measured is not None
    if slot.check == LOADS:
        return row.verdict != HOLDS
    if slot.check == KL and row.verdict == BROKEN:
        return True
    over = slot.promised is not None and row.measured > slot.promised * (1 + (slot.band or 0.0))
    return over or (slot.limit is not None and row.measured > slot.limit)


def _fault(receipt: Receipt) -> str:
    """What is broken that no slot is for: nothing counts of a package whose text or size is not what was promised. A
    time to the first token is a machine's own."""
    names = [row.name for row in receipt.rows if row.verdict == BROKEN and row.name not in (*_ROWS.values(), FIRST)]
    return f"{', '.join(names)}: broken" if names else ""


def answers(check: str, receipt: Receipt, device: Served) -> bool:
    """Whether what the receipt's machine measured is what the slot of `device` asks for."""
    machine = receipt.machine
    if check in (LOADS, KL) or receipt.device == device.name:
        return True
    alike = machine.kind == device.device.kind and machine.architecture == device.device.architecture
    return alike and (check == MEMORY or machine.model == device.device.model)


def open_slots(index: Index) -> Iterator[tuple[Slot, str]]:
    """Slots of something promised or limited that is not measured yet, or that is broken, each with a line."""
    for slot in index.slots:
        name = f"{slot.package} on {slot.device}: {slot.check}"
        if slot.broken:
            yield slot, f"{name} is broken" + (f": {slot.receipt.note}" if slot.receipt and slot.receipt.note else "")
        elif slot.holds_something and not slot.filled:
            said = f" ({slot.receipt.note}: {slot.receipt.machine.model})" if slot.receipt else ""
            yield slot, f"{name} is open{said}"
