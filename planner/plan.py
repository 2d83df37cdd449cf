"""A plan: the subnet chosen for one device and budget, with every prediction and the evidence behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

from planner.bands import BANDS
from planner.latency import LatencyEstimate
from planner.memory import MemoryEstimate
from planner.quality import Measured
from planner.request import Budget, Workload
from planner.runtimes.base import CardShare
from profiles.kernels import KernelEntry
from records.atomic import write_json
from records.errors import InputError
from records.reading import as_record, check, read_record
from supernet.space import SearchSpace, Subnet

if TYPE_CHECKING:
    from supernet.checkpoint import SupernetFiles

SCHEMA = 1
KIND = "bitfleet plan"
_REMAKE = "make it again with `bitfleet plan --out FILE`"

PLANNED, UNIFORM, STOCK = "planned", "uniform", "stock"
"""A subnet that a search found, one bit-width for every linear, the types that the runtime's own tools take."""
OVER, WORSE, LARGER, UNMEASURED = "over_limit", "loses_more", "takes_more", "not_measured"
CANNOT, NOT_INSTALLED, SLOWER, SHORTER = "cannot", "not_installed", "slower", "less_context"
"""Why an alternative is not the plan; the last four are of runtimes alone."""


SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class CacheRow(TypedDict):
    """How keys and values are kept: the runtime's word, bits of a value with all that a block holds, and what that
    loses beside what the subnet loses, None where it is not known."""

    type: str
    bits: float
    kl: NotRequired[float | None]


class Placement(TypedDict):
    """Layers on a GPU, of all that the runtime counts; the others are on its host."""

    gpu_layers: int
    layers: int


class ContextRoom(TypedDict):
    """Tokens of the longest context that the limit of memory has room for: beside the planned subnet, and beside the
    smallest that there is; 0 for none."""

    planned: int
    smallest: int


class ModelSummary(TypedDict):
    """What a plan says of the model; `tables` are the units as wide as the vocabulary."""

    name: str
    architecture: NotRequired[str]
    layers: NotRequired[int]
    units: NotRequired[int]
    linear_weights: NotRequired[int]
    max_context: NotRequired[int]
    tied: NotRequired[bool]
    tables: NotRequired[list[str]]


class DeviceSummary(TypedDict):
    """What a plan says of the device that it is for."""

    name: str
    kind: NotRequired[str]
    model: NotRequired[str]
    measured: NotRequired[bool]
    source: NotRequired[str]
    date: NotRequired[str]
    threads: NotRequired[int | None]
    host: NotRequired[str]  # the name of the machine that a GPU is in
    memory_bytes: NotRequired[int]
    usable_bytes: NotRequired[int]
    last_level_cache_bytes: NotRequired[int | None]
    kernels: NotRequired[list[KernelEntry]]  # what `verify` times again


@dataclass(frozen=True)
class Compared:
    """A subnet considered to the end: who proposed it, what it takes, what it was predicted and measured to lose.

    `kind` is "planned", "uniform" (one bit-width for every linear) or "stock" (the types that the runtime's own tools
    take). `disk_bytes` are of the weight files.
    `measured` is {} where nothing was measured, else `kl`, the mean over `texts`, and those by name.
    """

    kind: str
    source: str
    subnet: Subnet
    mean_bits: float
    memory_bytes: int
    disk_bytes: int
    tpot_ms: float
    ttft_ms: float
    predicted_kl: float
    measured: Measured = field(default_factory=Measured, hash=False)
    host_bytes: int | None = None  # of the machine that a GPU is in; None where there is none

    @property
    def kl(self) -> float:
        """What it loses, in nats a token: measured where something was, else predicted."""
        return self.measured.get("kl", self.predicted_kl)

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**data, "subnet": self.subnet.to_json(), "measured": dict(self.measured)}

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "disk_bytes"):
            check(name, getattr(self, name), int, least=1)
        check("host_bytes", self.host_bytes, int, optional=True, least=1)
        for name in ("mean_bits", "tpot_ms", "ttft_ms"):
            check(name, getattr(self, name), float, least=0)


@dataclass(frozen=True)
class Other:
    """What another runtime would do on the same device within the same budget; `refused` says why it cannot, or
    may not.

    `kl` is what its plan loses, measured where something was measured, else predicted, with what its rounding of
    activations costs. The bases are those of its memory and its latency.
    """

    runtime: str
    refused: str = ""
    reason: str = ""  # a code of the above
    kl: float | None = None
    memory_bytes: int | None = None
    memory_basis: str | None = None
    disk_bytes: int | None = None
    tpot_ms: float | None = None
    ttft_ms: float | None = None
    latency_basis: str | None = None
    context: int | None = None  # where it is another than the plan's

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "disk_bytes", "context"):
            check(name, getattr(self, name), int, optional=True, least=0)
        for name in ("kl", "tpot_ms", "ttft_ms"):
            check(name, getattr(self, name), float, optional=True, least=0)


CONTEXT, GPU_LAYERS = "context", "gpu-layers"
"""Decisions whose options are numbers."""


@dataclass(frozen=True)
class Margin:
    """If `decision` were `option` in place of `instead`: what that takes more of the device's peak memory by itself;
    what it loses more by itself, None where that was not measured; and what the weights lose more then, predicted, None
    where nothing keeps the limits. `tpot_ms` and `ttft_ms` are what the same weights take longer then. Less is below 0.
    """

    decision: str
    instead: str
    option: str
    memory_bytes: int
    own_kl: float | None
    weights_kl: float | None
    tpot_ms: float = 0.0
    ttft_ms: float = 0.0

    def __post_init__(self) -> None:
        check("memory_bytes", self.memory_bytes, int)
        for name in ("tpot_ms", "ttft_ms"):
            check(name, getattr(self, name), float)
        for name in ("own_kl", "weights_kl"):
            check(name, getattr(self, name), float, optional=True)
        for name in ("instead", "option") if self.decision in (CONTEXT, GPU_LAYERS) else ():
            if not re.fullmatch("[0-9]{1,18}", value := getattr(self, name)):
                raise InputError(f"{name} of {self.decision} must be a whole number, got {value!r:.80}")


NOT_TUNED = "tuned in"
"""How the note begins that says that training scales won nothing."""


@dataclass(frozen=True)
class Tuned:
    """How the scales of the chosen subnet were trained for it alone: the `units` that have new ones, of `linears`; the
    file of them, by its SHA-256 (`supernet.tuned`); and what the subnet was measured to lose before."""

    sha256: str
    steps: int
    seed: int
    text: str
    units: int
    linears: int
    before: Measured = field(hash=False)

    def __post_init__(self) -> None:
        check("sha256", self.sha256, str)
        if not SHA256.fullmatch(self.sha256):
            raise InputError(f"sha256 must be 64 hexadecimal digits, got {self.sha256!r:.80}")
        for name in ("steps", "seed", "units", "linears"):
            check(name, getattr(self, name), int, least=0)


@dataclass(frozen=True)
class Rejected:
    """An alternative and why it is not the plan: `reason` is OVER where it passes limits, WORSE where it loses more,
    LARGER where the loss was limited and it takes more memory, UNMEASURED where it takes less and only its prediction
    keeps the loss.

    `over` says of each limit that it passes by how much, what a promise may be off by included: bytes, ms or nats.
    `kl` is what it loses, `measured` or else predicted.
    """

    kind: str
    name: str
    reason: str
    over: Mapping[str, float] = field(hash=False)
    mean_bits: float
    memory_bytes: int
    disk_bytes: int
    tpot_ms: float
    ttft_ms: float
    kl: float
    measured: bool


@dataclass(frozen=True)
class Notch:
    """What a `share` more memory than the limit would win, or less would cost: the least sum of sensitivities within
    `limit_bytes`, `instead_of` the least within what was asked. None where nothing fits."""

    share: float
    limit_bytes: int
    memory_bytes: int | None
    kl: float | None
    instead_of: float


@dataclass(frozen=True)
class Point:
    """A subnet of the front. Of one that was `measured` none was found that is as little in loss, memory and time per
    token and less in one of them; else the loss is the least sum of sensitivities within so much memory."""

    memory_bytes: int
    kl: float
    measured: bool = False
    tpot_ms: float | None = None  # of what was measured, as the mean bits of linears and who proposed it
    mean_bits: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        check("memory_bytes", self.memory_bytes, int, least=1)
        for name in ("tpot_ms", "mean_bits"):
            check(name, getattr(self, name), float, optional=not self.measured, least=0)


@dataclass(frozen=True)
class Plan:
    """What `export` writes and `verify` holds a package to.

    `model` and `device` are summaries. `memory` and `latency` are the itemised estimates of the chosen subnet.
    `compared` are the finalists, the chosen one first; `notes` are what a reader must know, a line each.
    """

    supernet: str
    fingerprint: str
    model: ModelSummary
    runtime: str
    device: DeviceSummary
    workload: Workload
    budget: Budget
    limits: Budget  # what was planned to: the budget, or less where the device has less
    compared: tuple[Compared, ...]
    memory: MemoryEstimate
    latency: LatencyEstimate
    search: tuple[Mapping[str, Any], ...]
    dropped: Mapping[str, str]  # choices outside the space for this runtime, and why
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    date: str
    command: str = ""
    bands: Mapping[str, float] = field(default_factory=lambda: dict(BANDS))  # of memory, tpot and ttft: planner.bands
    kv_cache: CacheRow | None = None  # None in plans of before: as their runtime does unasked
    placement: Placement | None = None  # None where nothing was to be decided
    context_room: ContextRoom | None = None  # None where nobody asked
    rejected: tuple[Rejected, ...] = ()
    notches: tuple[Notch, ...] = ()
    front: tuple[Point, ...] = ()  # by memory: what a study measured, else what is lost at least, where that is drawn
    bits: Mapping[str, str] = field(default_factory=dict)  # a digit a layer, by role: planner.overview
    others: tuple[Other, ...] = ()  # where the runtime was chosen, too: those that were not
    margins: tuple[Margin, ...] = ()  # what other decisions beside the weights would be worth
    share: CardShare | None = None  # of each GPU, where the runtime takes it at once
    tuned: Tuned | None = None  # where the chosen subnet has scales of its own; `fingerprint` is with them then

    @property
    def chosen(self) -> Compared:
        return self.compared[0]

    @property
    def subnet(self) -> Subnet:
        return self.chosen.subnet

    @property
    def uniform(self) -> Compared | None:
        """The best uniform subnet within the same budget; None where none fits."""
        return next((c for c in self.compared if c.kind == UNIFORM), None)

    def check(self, space: SearchSpace) -> None:
        """InputError unless what was chosen is a subnet of `space`: a plan is a file that anybody may edit."""
        if self.subnet not in space:
            raise InputError(f"a plan gives every unit one of its supernet's choices, this one does not; {_REMAKE}")

    def opened(self, files: SupernetFiles) -> SupernetFiles:
        """The supernet that it was made for with the scales of its own, where it has some; errors are those of
        `supernet.tuned.with_tuned`."""
        from supernet.tuned import with_tuned

        return files if self.tuned is None else with_tuned(files, self.tuned.sha256, self.subnet)

    def portable(self) -> Plan:
        """What a package keeps: without what differs between equal plans that were made elsewhere, or another day."""
        search = tuple({name: said for name, said in trace.items() if name != "seconds"} for trace in self.search)
        return replace(self, supernet="", command="", date="", search=search)

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        kernels = self.device.get("kernels")
        data = {
            "kind": KIND,
            "schema": SCHEMA,
            **data,
            "device": {**self.device, **({"kernels": [asdict(entry) for entry in kernels]} if kernels else {})},
            "workload": self.workload.to_json(),
            "budget": self.budget.to_json(),
            "limits": self.limits.to_json(),
            "memory": self.memory.to_json(),
            "latency": self.latency.to_json(),
            "compared": [compared.to_json() for compared in self.compared],
            "search": list(self.search),
            "notes": list(self.notes),
            "rejected": [asdict(one) for one in self.rejected],
            "notches": [asdict(one) for one in self.notches],
            "front": [asdict(one) for one in self.front],
            "bits": dict(self.bits),
            "others": [asdict(other) for other in self.others],
            "margins": [asdict(margin) for margin in self.margins],
            "tuned": None if self.tuned is None else asdict(self.tuned),
            "share": None if self.share is None else asdict(self.share),
        }
        unsaid = [name for name in ("tuned", "share") if data[name] is None]
        return {name: value for name, value in data.items() if name not in unsaid}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """InputError for anything that `to_json` did not write."""
        if data.get("kind") != KIND:
            raise InputError(f"a plan says kind {KIND!r}, this says {data.get('kind')!r}")
        if data.get("schema") != SCHEMA:
            raise InputError(f"plans of schema {SCHEMA} are read, this is of schema {data.get('schema')!r}")
        values = {key: value for key, value in data.items() if key not in ("kind", "schema")}
        return cast(Plan, as_record(cls, values, "a plan"))

    def __post_init__(self) -> None:
        if not self.compared:
            raise InputError("a plan compares at least the subnet it chose, got none")
        for name in BANDS:
            check(f"the band of {name}", self.bands.get(name), float, least=0)
            if self.bands[name] > 1:
                raise InputError(f"the band of {name} must be at most 1, got {self.bands[name]!r}")

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Plan:
        """MissingError or InputError, one line with the next step, for what is missing, corrupt or no plan."""
        return read_record(path, cls, "plan", _REMAKE)
