"""What subnets cost on one runtime, device and workload: as resources for a search, and in full for one subnet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from planner.bands import bands
from planner.latency import LatencyEstimate, estimate_latency
from planner.limits import DISK, HOST_MEMORY, LIMITS, MEMORY, TPOT, TTFT
from planner.memory import MemoryEstimate, estimate_memory
from planner.plan import Compared
from planner.request import Budget, Workload
from planner.runtimes.base import DEVICE, HOST, CardShare, Holding, Pricing, Runtime
from planner.search.base import Resource
from profiles.device import DeviceProfile
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec
from supernet.ties import together


@dataclass(frozen=True)
class Estimates:
    """Those that were made, by subnet."""

    memory: dict[Subnet, MemoryEstimate] = field(default_factory=dict)
    latency: dict[Subnet, LatencyEstimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Costs:
    """The runtime's arithmetic with everything fixed but the subnet. `spec` is the model as the runtime ties it, and
    subnets may be in its units or in the supernet's. `rest_bytes` is its holding's; `known` may be shared by alike
    devices of other names."""

    runtime: Runtime
    spec: ModelSpec
    workload: Workload
    device: DeviceProfile
    rest_bytes: int
    known: Estimates = field(default_factory=Estimates, compare=False, repr=False)

    @classmethod
    def of(cls, runtime: Runtime, spec: ModelSpec, workload: Workload, device: DeviceProfile, model_dir: Path) -> Costs:
        """Of the model that is described in `model_dir`, its units tied as the runtime does; InputError where the
        runtime cannot be told of it."""
        spec = runtime.tied(spec)
        return cls(runtime, spec, workload, device, runtime.holding(spec).rest_bytes(workload, model_dir))

    def serving(self, workload: Workload) -> Costs:
        """The same for another workload, but for `rest_bytes`: what a context changes on disk is left as it was."""
        return replace(self, workload=workload, known=Estimates())

    @cached_property
    def pricing(self) -> Pricing:
        return self.runtime.pricing(self.spec, self.workload, self.device)

    @cached_property
    def holding(self) -> Holding:
        return self.runtime.holding(self.spec)

    def memory(self, subnet: Subnet) -> MemoryEstimate:
        subnet = self._tied(subnet)
        if subnet not in self.known.memory:
            self.known.memory[subnet] = estimate_memory(self.pricing, subnet)
        return self.known.memory[subnet]

    def latency(self, subnet: Subnet) -> LatencyEstimate:
        subnet = self._tied(subnet)
        if subnet not in self.known.latency:
            self.known.latency[subnet] = estimate_latency(self.pricing, subnet)
        return self.known.latency[subnet]

    def share(self, subnet: Subnet, limit_bytes: int) -> CardShare | None:
        """What the runtime takes of each GPU within a limit of its memory, where it takes that at once."""
        return self.pricing.share(self._tied(subnet), limit_bytes)

    def _tied(self, subnet: Subnet) -> Subnet:
        return together(subnet, self.spec, self.runtime.name)

    def disk_bytes(self, subnet: Subnet) -> int:
        return int(sum(amount for _, amount in self._disk_items(subnet)))

    def resources(self, space: SearchSpace, limits: Budget) -> tuple[Resource, ...]:
        """What `limits` limit, memory first, read off full estimates: every unit at its first choice, then the next.

        Each amount is with its band, so that what is measured keeps the limit as well as the promise.
        """
        limited: list[tuple[str, float | None, Callable[[Subnet], list[tuple[str | None, float]]]]] = [
            (MEMORY, limits.memory_bytes, lambda s: self._in_pool(s, DEVICE)),
            (HOST_MEMORY, limits.host_memory_bytes, lambda s: self._in_pool(s, HOST)),
            (TPOT, limits.tpot_ms, lambda s: [(i.unit, i.ms) for i in self.latency(s).decode]),
            (TTFT, limits.ttft_ms, lambda s: [(i.unit, i.ms) for i in self.latency(s).prefill]),
            (DISK, limits.disk_bytes, self._disk_items),
        ]
        over, most = bands(self.device, self.runtime.name), max(len(choices) for _, choices in space)
        subnets = [
            Subnet(tuple((unit, choices[min(number, len(choices) - 1)]) for unit, choices in space))
            for number in range(most)
        ]
        found = []
        for name, limit, items in limited:
            if limit is None:
                continue
            parts = _Parts(space)
            for subnet in subnets:
                parts.add(subnet, items(subnet))
            parts = parts.times(1 + over.get(MEMORY if name == HOST_MEMORY else name, 0.0))
            found.append(Resource(name, LIMITS[name].unit, limit, parts.constant, parts.table))
        return tuple(found)

    def compared(self, kind: str, source: str, subnet: Subnet, predicted_kl: float, **measured: Any) -> Compared:
        latency = self.latency(subnet)
        return Compared(
            kind=kind,
            source=source,
            subnet=subnet,
            mean_bits=round(self._tied(subnet).mean_bits(self.spec), 4),
            memory_bytes=self.memory(subnet).total_bytes,
            host_bytes=self.memory(subnet).host_bytes or None,
            disk_bytes=self.disk_bytes(subnet),
            tpot_ms=latency.tpot_ms,
            ttft_ms=latency.ttft_ms,
            predicted_kl=predicted_kl,
            **measured,
        )

    def _in_pool(self, subnet: Subnet, pool: str) -> list[tuple[str | None, float]]:
        return [(item.unit, item.bytes) for item in self.memory(subnet).items if item.pool == pool]

    def _disk_items(self, subnet: Subnet) -> list[tuple[str | None, float]]:
        subnet = self._tied(subnet)
        units = [(u.name, self.holding.unit_bytes(u, subnet[u.name])) for u in self.spec.units]
        return [(None, self.rest_bytes), *units]


class _Parts:
    """Items of full estimates, by the unit and choice that they are of; those of no unit are the constant."""

    def __init__(self, space: SearchSpace) -> None:
        self.table: dict[str, dict[Choice, float]] = {unit: {} for unit, _ in space}
        self.constant = 0.0

    def times(self, factor: float) -> _Parts:
        self.constant *= factor
        self.table = {unit: {c: factor * amount for c, amount in known.items()} for unit, known in self.table.items()}
        return self

    def add(self, subnet: Subnet, items: Iterable[tuple[str | None, float]]) -> None:
        amounts: dict[str | None, float] = dict.fromkeys((None, *self.table), 0.0)
        for unit, amount in items:
            amounts[unit] += amount
        self.constant = max(self.constant, amounts[None])  # what little there is of loading goes as units grow
        for unit, choice in subnet:
            self.table[unit][choice] = amounts[unit]
