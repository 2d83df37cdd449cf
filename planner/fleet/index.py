"""`index.json` of an export for many devices: packages, who takes which, what is promised and what was measured.

docs/fleet.md describes every field.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from planner.bands import KL_LIMIT
from planner.overview import bits_by_layer, summed
from planner.package import MANIFEST, Entry
from planner.plan import Compared, Plan
from planner.quality import TextQuality
from planner.request import Budget, Workload
from planner.rows import PEAK_HOST_MEMORY, PEAK_MEMORY
from planner.runtimes.base import DEVICE, ESTIMATE
from profiles.device import DeviceProfile
from records.atomic import sha256, write_json
from records.errors import InputError
from records.reading import as_record, check, read_record
from supernet.space import Subnet
from supernet.spec import ModelSpec

INDEX = "index.json"
SUMS = "SHA256SUMS"
KIND = "bitfleet index"
SCHEMA = 1
_REMAKE = "make it again with `bitfleet fleet FILE --export DIR`"

LOADS, KL, MEMORY, HOST_MEMORY, TIME = "loads", "kl", PEAK_MEMORY, PEAK_HOST_MEMORY, "time per token"
CHECKS = {LOADS: "", KL: "nats/token", MEMORY: "bytes", HOST_MEMORY: "bytes", TIME: "ms"}
"""What a slot is for, and its unit."""

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,120}", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Device:
    """What is said of a device, promised for or measured on: no names of users, nor of machines in a network. `host` is
    the model of the machine that a GPU is in."""

    name: str
    kind: str
    model: str
    architecture: str | None
    memory_bytes: int
    measured: bool
    host: str | None = None

    @classmethod
    def of(cls, profile: DeviceProfile) -> Device:
        return cls(
            profile.name, profile.kind, profile.model, profile.architecture, profile.memory_bytes, profile.measured,
            None if profile.host is None else profile.host.model,
        )  # fmt: skip


@dataclass(frozen=True)
class Loss:
    """KL per token in nats to the full model, `interval` half of its 95 %; by text where it was measured on some."""

    kl: float
    measured: bool
    interval: float | None = None
    texts: Mapping[str, TextQuality] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check("kl", self.kl, float)
        check("interval", self.interval, float, optional=True, least=0)


@dataclass(frozen=True)
class Amount:
    """One item of peak memory."""

    name: str
    bytes: int

    def __post_init__(self) -> None:
        check("bytes", self.bytes, int, least=0)


@dataclass(frozen=True)
class Listed:
    """A package. `bytes` are of all its files, `disk_bytes` of the weight files; `bits` is `bits_text`,
    `memory` what the first of its `devices` is promised, by item, and `host_memory` what its host is."""

    name: str
    runtime: str
    workload: Workload
    manifest_sha256: str
    bytes: int
    files: Mapping[str, Entry]
    mean_bits: float
    disk_bytes: int
    bits: str
    memory: tuple[Amount, ...]
    loss: Loss
    devices: tuple[str, ...]
    host_memory: tuple[Amount, ...] = ()

    def __post_init__(self) -> None:
        if not _PACKAGE.fullmatch(self.name):
            raise InputError(f"a package has a plain name, got {self.name!r:.80}")
        if odd := [name for name in self.files if not _FILE.fullmatch(name)]:
            raise InputError(f"a file of a package has a plain name, got {odd[0]!r:.80}")
        _check_sha256("manifest_sha256", self.manifest_sha256)
        for name in ("bytes", "disk_bytes"):
            check(name, getattr(self, name), int, least=0)
        check("mean_bits", self.mean_bits, float, least=0)


@dataclass(frozen=True)
class Served:
    """A device of the fleet and what it is promised by `package`; without one, `refused` says why, and with which
    budget it would be served. `best_loss` is what its own best plan loses. `bands` are as a plan's. `layers` are all
    that its runtime counts, of which the workload's `gpu_layers` are on the GPU."""

    name: str
    device: Device
    runtime: str
    budget: Budget
    workload: Workload
    package: str | None
    refused: str = ""
    memory_bytes: int | None = None
    memory_basis: str | None = None
    tpot_ms: float | None = None
    ttft_ms: float | None = None
    latency_basis: str | None = None
    disk_bytes: int | None = None
    bands: Mapping[str, float] = field(default_factory=dict, hash=False)
    loss: Loss | None = None
    best_loss: Loss | None = None
    host_memory_bytes: int | None = None
    layers: int | None = None

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "host_memory_bytes", "disk_bytes", "layers"):
            check(name, getattr(self, name), int, optional=True, least=0)
        for name in ("tpot_ms", "ttft_ms"):
            check(name, getattr(self, name), float, optional=True, least=0)
        if self.package is None and not self.refused:
            raise InputError(f"a device has a package or the reason why not, {self.name!r:.80} has neither")


@dataclass(frozen=True)
class Filled:
    """Whence a slot's number is: a receipt. `counts` where it answers the slot, whose promise may be for another kind
    of machine; `broken` where what was measured breaks the promise or the limit."""

    date: str
    machine: Device
    versions: Mapping[str, str] = field(hash=False)
    sha256: str
    counts: bool = True
    broken: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        _check_sha256("sha256", self.sha256)
        check_date(self.date)


@dataclass(frozen=True)
class Slot:
    """What is to be measured of a package on a device: `check` is one of `CHECKS`, `unit` its unit.

    `limit` is the user's, `promised` ours, kept up to the share `band` above it; a promise of None was an estimate.
    """

    package: str
    manifest_sha256: str
    device: str
    check: str
    unit: str
    limit: float | None = None
    promised: float | None = None
    band: float | None = None
    measured: float | None = None
    receipt: Filled | None = None

    def __post_init__(self) -> None:
        if self.unit != CHECKS.get(self.check):
            raise InputError(f"a slot checks one of {', '.join(CHECKS)} in its unit, got {self.check!r:.80}")
        _check_sha256("manifest_sha256", self.manifest_sha256)
        for name in ("limit", "promised", "band", "measured"):
            check(name, getattr(self, name), float, optional=True)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.package, self.device, self.check

    @property
    def holds_something(self) -> bool:
        """Whether there is anything to keep: an estimate that nobody limited is shown and not required."""
        return self.limit is not None or self.promised is not None

    @property
    def filled(self) -> bool:
        """Whether something that answers it was measured."""
        return self.receipt is not None and self.receipt.counts

    @property
    def broken(self) -> bool:
        return self.receipt is not None and self.receipt.counts and self.receipt.broken

    @property
    def state(self) -> str:
        """In a word: open, elsewhere, holds or BROKEN; "" where nothing is to be kept."""
        if self.receipt is None:
            return "open" if self.holds_something else ""
        if not self.receipt.counts:
            return "elsewhere"
        return "BROKEN" if self.broken else "holds" if self.holds_something else ""


@dataclass(frozen=True)
class Difference:
    """What became of a device since the baseline, in a line; `worse` where it is more than what was allowed."""

    device: str
    what: str
    line: str
    worse: bool


@dataclass(frozen=True)
class Index:
    """An export for a fleet.

    `max_loss` is the share by which a device may lose more than with its own best plan. `proven` says that no fewer of
    the subnets that were proposed for these devices do; where it is not, `gap` is by which share fewer might. `date` is
    when it was written, or what `SOURCE_DATE_EPOCH` says. `model` is as a plan's. `differences` are those from a
    baseline, where there was one.
    """

    date: str
    supernet: str  # its fingerprint
    model: Mapping[str, Any]
    max_loss: float
    proven: bool
    gap: float
    versions: Mapping[str, str]
    packages: tuple[Listed, ...]
    devices: tuple[Served, ...]
    slots: tuple[Slot, ...] = ()
    differences: tuple[Difference, ...] = ()

    def __post_init__(self) -> None:
        for what, known in (("packages", self.packages), ("devices", self.devices)):
            twice = [name for name, count in Counter(one.name for one in known).items() if count > 1]
            if twice:
                raise InputError(f"{what} of an index have names of their own, {twice[0]!r:.80} is there twice")
        manifests = {package.name: package.manifest_sha256 for package in self.packages}
        takes = {device.name: device.package for device in self.devices}
        for name, package in takes.items():
            if package is not None and package not in manifests:
                raise InputError(f"{name!r:.80} takes a package of the index, {package!r:.80} is none")
        if len({slot.key for slot in self.slots}) < len(self.slots):
            raise InputError("each package, device and check of an index has one slot, one of them has two")
        for slot in self.slots:
            if takes.get(slot.device) != slot.package:
                raise InputError(
                    f"a slot is of a device of the index and its package, {slot.device!r:.80} does not take "
                    f"{slot.package!r:.80}"
                )
            if slot.manifest_sha256 != manifests[slot.package]:
                raise InputError(f"a slot is of its package's manifest, one of {slot.package} is of another")
        check("the name of the model", self.model.get("name"), str)
        for name in ("max_loss", "gap"):
            check(name, getattr(self, name), float, least=0)

    def package(self, name: str) -> Listed:
        return next(package for package in self.packages if package.name == name)

    def to_json(self) -> dict[str, Any]:
        return {"kind": KIND, "schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Index:
        """InputError for anything that `to_json` did not write."""
        if data.get("kind") != KIND or data.get("schema") != SCHEMA:
            raise InputError(f"an index says kind {KIND!r} and schema {SCHEMA}, this does not")
        values = {key: value for key, value in data.items() if key not in ("kind", "schema")}
        return cast(Index, as_record(cls, values, "an index"))

    def save(self, folder: Path) -> None:
        write_json(folder / INDEX, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Index:
        """Of a file, or of the folder that it lies in. MissingError or InputError, one line with the next step."""
        return read_record(path / INDEX if path.is_dir() else path, cls, "index", _REMAKE)


def check_date(date: str) -> None:
    """InputError unless it is a moment that others can be compared with."""
    try:
        when = datetime.fromisoformat(date)
    except ValueError:
        when = datetime.min
    if when.tzinfo is None:
        raise InputError(f"a date is like 2026-12-01T12:00:00+00:00, got {date!r:.80}")


def _check_sha256(name: str, value: str) -> None:
    if not _SHA256.fullmatch(value):
        raise InputError(f"{name} must be 64 hexadecimal digits, got {value!r:.80}")


def package_name(
    model: str, mean_bits: float, subnet: Subnet, runtime: str, workload: Workload, threads: int | None = None
) -> str:
    """`smollm2-135m-3.9bits-4096-1f3a9c2b`: model, mean bits, context, and a hash of that, of the subnet, the runtime,
    the batch, the threads, the type of the KV cache, the layers on a GPU and the number of GPUs. A package is for any
    prompt."""
    plain = re.sub(r"[^a-z0-9.]+", "-", model.rpartition("/")[2].lower()).strip("-.")[:60] or "model"
    said = [one for one in (workload.kv_cache, workload.gpu_layers) if one is not None]
    said += [f"gpus {workload.gpus}"] if workload.gpus > 1 else []
    text = json.dumps([subnet.digest, runtime, workload.context, workload.batch, threads, *said])
    return f"{plain}-{mean_bits:.1f}bits-{workload.context}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def bits_text(subnet: Subnet, spec: ModelSpec) -> str:
    """`planner.overview.bits_by_layer` as a line a role: `qkv 4434...`."""
    return "\n".join(f"{role} {digits}" for role, digits in bits_by_layer(subnet, spec).items())


def memory_of(plan: Plan, spec: ModelSpec, pool: str = DEVICE) -> tuple[Amount, ...]:
    """Peak memory of the device, or of its HOST, by item, the largest first, the linears as one."""
    sums: Counter[str] = Counter()
    tables = [unit.name for unit in spec.units if unit.is_table]
    items = [item for item in plan.memory.items if item.pool == pool]
    for (name, _), amount in summed(items, tables).items():
        sums[name] += round(amount)
    return tuple(Amount(name, amount) for name, amount in sums.most_common() if amount)


def loss_of(compared: Compared) -> Loss:
    """What was measured, else what was predicted. Over several texts there is no interval of the mean."""
    if "kl" not in compared.measured:
        return Loss(compared.predicted_kl, measured=False)
    texts = compared.measured.get("texts", {})
    interval = next(iter(texts.values())).get("kl_interval") if len(texts) == 1 else None
    return Loss(compared.measured["kl"], True, interval, texts)


def slots_of(package: Listed, device: Served) -> tuple[Slot, ...]:
    """The open slots of one device. A time that was estimated is no promise, and what the user limited is limited; a
    context without room for a second token has no time per token."""
    band = device.bands
    made = [
        (LOADS, None, 1.0, 0.0),
        (KL, None, KL_LIMIT, 0.0),
        (MEMORY, device.budget.memory_bytes, device.memory_bytes, band.get("memory", 0.0)),
    ]
    if device.host_memory_bytes is not None:
        made.append((HOST_MEMORY, device.budget.host_memory_bytes, device.host_memory_bytes, band.get("memory", 0.0)))
    if device.workload.has_second_token:
        sure = device.latency_basis != ESTIMATE
        promised = (device.tpot_ms, band.get("tpot", 0.0)) if sure else (None, None)
        made.append((TIME, device.budget.tpot_ms, *promised))
    return tuple(
        Slot(package.name, package.manifest_sha256, device.name, check, CHECKS[check], limit, promised, within)
        for check, limit, promised, within in made
    )


def sha256sums(dist: Path, index: Index) -> str:
    """What `sha256sum -c` accepts in `dist`: every file of every package, its manifest too.

    `index.json` and the page are not in it: receipts change them, and what packages hold never changes.
    """
    lines = []
    for package in index.packages:
        lines += [f"{entry.sha256}  {package.name}/{name}" for name, entry in package.files.items()]
        lines.append(f"{sha256(dist / package.name / MANIFEST)}  {package.name}/{MANIFEST}")
    return "".join(f"{line}\n" for line in sorted(lines, key=lambda line: line[66:]))
