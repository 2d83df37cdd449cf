"""A plan: the subnet chosen for one device and budget, with every prediction and the evidence behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from planner.request import Budget, Workload
from records.atomic import write_json
from records.errors import InputError
from records.reading import read_json
from supernet.space import Subnet

SCHEMA = 1
KIND = "bitfleet plan"
_REMAKE = "make it again with `bitfleet plan --out FILE`"

PLANNED = "planned"
UNIFORM = "uniform"


@dataclass(frozen=True)
class Compared:
    """A subnet considered to the end: who proposed it, what it takes, what it was predicted and measured to lose.

    `kind` is "planned" or "uniform", the latter one bit-width for every linear. `disk_bytes` are of the weight files.
    `measured` is {} where nothing was measured.
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
    measured: Mapping[str, float] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**data, "subnet": self.subnet.to_json(), "measured": dict(self.measured)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Compared:
        return cls(**{**data, "subnet": Subnet.from_json(data["subnet"])})


@dataclass(frozen=True)
class Plan:
    """What `export` writes and `verify` holds a package to. Tables are plain JSON: numbers with their basis.

    `model` and `device` are summaries. `memory` and `latency` are itemised estimates of the chosen subnet.
    `compared` are the finalists, the chosen one first; `notes` are what a reader must know, a line each.
    """

    supernet: str
    fingerprint: str
    model: Mapping[str, Any]
    runtime: str
    device: Mapping[str, Any]
    workload: Workload
    budget: Budget
    limits: Budget  # what was planned to: the budget, or less where the device has less
    compared: tuple[Compared, ...]
    memory: Mapping[str, Any]
    latency: Mapping[str, Any]
    search: tuple[Mapping[str, Any], ...]
    dropped: Mapping[str, str]  # choices outside the space for this runtime, and why
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    date: str
    command: str = ""

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

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            "kind": KIND,
            "schema": SCHEMA,
            **data,
            "workload": self.workload.to_json(),
            "budget": self.budget.to_json(),
            "limits": self.limits.to_json(),
            "compared": [compared.to_json() for compared in self.compared],
            "search": list(self.search),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """InputError for anything that `to_json` did not write."""
        if data.get("kind") != KIND:
            raise InputError(f"a plan says kind {KIND!r}, this says {data.get('kind')!r}")
        if data.get("schema") != SCHEMA:
            raise InputError(f"plans of schema {SCHEMA} are read, this is of schema {data.get('schema')!r}")
        values = {key: value for key, value in data.items() if key not in ("kind", "schema")}
        try:
            return cls(
                **{
                    **values,
                    "workload": Workload.from_json(values["workload"]),
                    "budget": Budget.from_json(values["budget"]),
                    "limits": Budget.from_json(values["limits"]),
                    "compared": tuple(Compared.from_json(compared) for compared in values["compared"]),
                    "search": tuple(values["search"]),
                    "notes": tuple(values["notes"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"a plan has all fields of this version and no others ({error})") from None

    def __post_init__(self) -> None:
        if not self.compared:
            raise InputError("a plan compares at least the subnet it chose, got none")

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Plan:
        """MissingError or InputError, one line with the next step, for what is missing, corrupt or no plan."""
        data = read_json(path, "plan", _REMAKE)
        try:
            return cls.from_json(data)
        except ValueError as error:
            raise InputError(f"{path}: {error}; {_REMAKE}") from None
