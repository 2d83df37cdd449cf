"""What a device is, as a value with provenance and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from profiles.kernels import KernelTable
from records.atomic import write_text
from records.errors import InputError
from records.reading import as_record, check, read_record

SCHEMA = 1
GPU_KINDS = ("cuda", "vulkan")
"""NVIDIA's, and others, which llama.cpp runs on by Vulkan."""
KINDS = ("cpu", *GPU_KINDS)
BANDWIDTH_BASES = ("measured", "datasheet", "theoretical")


@dataclass(frozen=True)
class Cache:
    """One level of cache: `size_bytes` of each, `count` of them on the device."""

    level: int
    kind: str
    size_bytes: int
    count: int

    def __post_init__(self) -> None:
        if self.kind not in ("data", "instruction", "unified"):
            raise InputError(f"a cache is data, instruction or unified, got {self.kind!r}")
        for name in ("level", "size_bytes", "count"):
            check(f"{name} of a cache", getattr(self, name), int, least=1)


@dataclass(frozen=True)
class Calibration:
    """A number that a runtime measured about itself on this device, such as its memory before any weight is loaded.

    `spread` is half the distance from the 10th to the 90th percentile as a fraction of `value`; None if measured once.
    """

    runtime: str
    name: str
    value: float
    unit: str
    spread: float | None = None

    def __post_init__(self) -> None:
        for name in ("runtime", "name", "unit"):
            check(f"{name} of a calibration", getattr(self, name), str)
        check("value of a calibration", self.value, float)
        check("spread of a calibration", self.spread, float, optional=True, least=0)


@dataclass(frozen=True)
class DeviceProfile:
    """A device, measured (`measured=True`) or from a datasheet; see the fields' comments for units and meaning.

    What is not known is None, never a guess. InputError where a field has the wrong type or range.
    """

    name: str  # short and unique: a catalogue name, a host's own CPU or GPU name
    kind: str  # one of KINDS
    vendor: str
    model: str
    memory_bytes: int  # what the operating system or the datasheet says is there
    measured: bool
    source: str  # "bitfleet profile device" or the datasheet's address
    date: str  # ISO date of the measurement, or of the look-up
    schema: int = SCHEMA
    architecture: str | None = None  # x86_64, aarch64, or a CUDA compute capability such as sm_90
    cores_physical: int | None = None
    cores_logical: int | None = None
    threads: int | None = None  # what a runtime should use: cores allowed by affinity and quota, without hyper-threads
    clock_hz: float | None = None  # sustained base clock
    instruction_sets: tuple[str, ...] = ()
    caches: tuple[Cache, ...] = ()
    available_bytes: int | None = None  # free for a new process when it was profiled; None in a catalogue entry
    cgroup_limit_bytes: int | None = None  # a container's memory limit
    cgroup_used_bytes: int | None = None  # of that limit, without what the kernel can reclaim
    cpu_quota: float | None = None  # a container's limit, in cores
    bandwidth_bytes_per_s: float | None = None  # memory bandwidth, read plus written
    bandwidth_basis: str | None = None  # measured, datasheet, or theoretical (clock times bus width)
    bandwidth_spread: float | None = None  # of a measured one, as in Calibration
    fp32_ops_per_s: float | None = None  # peaks, dense, a multiply-add is two; None where none is published
    bf16_ops_per_s: float | None = None
    int8_ops_per_s: float | None = None
    kernels: KernelTable = field(default_factory=KernelTable)
    calibrations: tuple[Calibration, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    notes: str = ""
    shares_memory: bool = False  # a GPU that has none of its own: its memory is its processor's
    host: DeviceProfile | None = None  # the machine that a GPU is in, where that is known

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise InputError(f"schema must be {SCHEMA}, got {self.schema!r}; it was written by another version")
        for name in ("name", "vendor", "model", "source", "date"):
            check(name, getattr(self, name), str)
        if self.kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        check("memory_bytes", self.memory_bytes, int, least=1)
        for name in ("cores_physical", "cores_logical", "threads"):
            check(name, getattr(self, name), int, optional=True, least=1)
        for name in ("available_bytes", "cgroup_limit_bytes", "cgroup_used_bytes"):
            check(name, getattr(self, name), int, optional=True, least=0)
        for name in _RATES:
            check(name, getattr(self, name), float, optional=True, least=0, above=True)
        check("bandwidth_spread", self.bandwidth_spread, float, optional=True, least=0)
        check("architecture", self.architecture, str, optional=True)
        if (self.bandwidth_bytes_per_s is None) != (self.bandwidth_basis is None):
            raise InputError("bandwidth_bytes_per_s and bandwidth_basis are given together or not at all")
        if self.bandwidth_basis not in (None, *BANDWIDTH_BASES):
            raise InputError(f"bandwidth_basis is {', '.join(BANDWIDTH_BASES)} or null, got {self.bandwidth_basis!r}")
        if len({(c.runtime, c.name) for c in self.calibrations}) != len(self.calibrations):
            raise InputError("calibrations must name each number of a runtime once")
        if self.host is not None:
            self._check_host(self.host)

    def _check_host(self, host: DeviceProfile) -> None:
        if self.kind not in GPU_KINDS:
            raise InputError(f"a host is the machine that a GPU is in, {self.name} is a {self.kind}")
        if self.shares_memory:
            raise InputError(f"{self.name} shares its memory with its own processor, it is in no other machine")
        if host.kind != "cpu":
            raise InputError(f"a host is a machine of kind cpu, {host.name} is {host.kind}")

    @property
    def usable_bytes(self) -> int:
        """What a new process may take: available memory within the container's limit; a catalogue entry's total."""
        bounds = [self.memory_bytes]
        if self.available_bytes is not None:
            bounds.append(self.available_bytes)
        if self.cgroup_limit_bytes is not None:
            bounds.append(max(0, self.cgroup_limit_bytes - (self.cgroup_used_bytes or 0)))
        return min(bounds)

    @property
    def last_level_cache_bytes(self) -> int | None:
        """All caches of the highest level together; None where no cache is known."""
        top = max((c.level for c in self.caches), default=None)
        return sum(c.size_bytes * c.count for c in self.caches if c.level == top) if top else None

    def calibration(self, runtime: str, name: str) -> Calibration | None:
        """The number `name` that `runtime` measured about itself here, or None."""
        return next((c for c in self.calibrations if (c.runtime, c.name) == (runtime, name)), None)

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("shares_memory", "host")}
        return {
            **data,
            "instruction_sets": list(self.instruction_sets),
            "caches": [asdict(cache) for cache in self.caches],
            "kernels": self.kernels.to_json(),
            "calibrations": [asdict(calibration) for calibration in self.calibrations],
            "versions": dict(self.versions),
            **({"shares_memory": True} if self.shares_memory else {}),
            **({} if self.host is None else {"host": self.host.to_json()}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceProfile:
        """InputError, naming the field, on an unknown or missing field or a wrong value; defaults may be left out."""
        return cast(DeviceProfile, as_record(cls, data, "a device profile"))

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON, whole or not at all."""
        write_text(Path(path), dump(self.to_json()) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> DeviceProfile:
        """What `save` wrote. MissingError or InputError: one line with the file, the field and the next step."""
        path = Path(path)
        return read_record(path, cls, "device profile", f"make it again with `bitfleet profile device --out {path}`")


_RATES = (
    "clock_hz", "cpu_quota", "bandwidth_bytes_per_s", "fp32_ops_per_s", "bf16_ops_per_s", "int8_ops_per_s"
)  # fmt: skip


def dump(value: Any, depth: int = 0) -> str:
    """JSON that a person can read: one line a field, and one line a member of a list."""
    if depth < 3 and isinstance(value, dict) and value:
        lines = [f"{json.dumps(key)}: {dump(member, depth + 1)}" for key, member in value.items()]
        brackets = "{}"
    elif depth < 3 and isinstance(value, list) and any(isinstance(member, (dict, list)) for member in value):
        lines = [json.dumps(member) for member in value]
        brackets = "[]"
    else:
        return json.dumps(value)
    pad = "  " * (depth + 1)
    return f"{brackets[0]}\n{pad}" + f",\n{pad}".join(lines) + f"\n{'  ' * depth}{brackets[1]}"
