"""Two plans side by side: what was asked of each, what it promises, and where its bits differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from planner.plan import Plan

Value = float | str | None


@dataclass(frozen=True)
class Line:
    """One value of both plans: text, or a number in `unit` ("bytes", "ms", "tokens", "nats", "bits"); None where a
    plan has none."""

    group: str
    name: str
    unit: str
    values: tuple[Value, Value]

    @property
    def differs(self) -> bool:
        return self.values[0] != self.values[1]

    @property
    def change(self) -> float | None:
        """The share by which the second number is more than the first."""
        before, now = self.values
        if isinstance(before, str) or isinstance(now, str) or not before or now is None:
            return None
        return now / before - 1


@dataclass(frozen=True)
class Differences:
    """`units` are those whose choice differs, of `count` that both plans have; `bits` the roles in which layers do."""

    lines: tuple[Line, ...]
    units: tuple[tuple[str, str, str], ...]
    count: int
    bits: tuple[tuple[str, str, str], ...]

    @property
    def verdict(self) -> str:
        if not self.count:
            return "the plans have no unit in common: their models differ"
        if not self.units:
            return "both have the same bits everywhere"
        return f"{len(self.units)} of {self.count} units differ"

    def to_json(self) -> dict[str, Any]:
        return {
            "lines": [{**asdict(line), "differs": line.differs, "change": line.change} for line in self.lines],
            "units": [{"unit": unit, "choices": [a, b]} for unit, a, b in self.units],
            "bits": [{"role": role, "by_layer": [a, b]} for role, a, b in self.bits],
        }


def differences(first: Plan, second: Plan) -> Differences:
    """Of two plans, which may be of other devices, runtimes, supernets or models."""
    ours, theirs = dict(first.subnet), dict(second.subnet)
    common = [unit for unit in ours if unit in theirs]
    units = tuple((unit, f"{ours[unit]}", f"{theirs[unit]}") for unit in common if ours[unit] != theirs[unit])
    roles = dict.fromkeys((*first.bits, *second.bits))
    bits = [(role, first.bits.get(role, ""), second.bits.get(role, "")) for role in roles]
    return Differences(tuple(_lines(first, second)), units, len(common), tuple(b for b in bits if b[1] != b[2]))


def _lines(first: Plan, second: Plan) -> Iterator[Line]:
    for one, other in zip(_values(first), _values(second), strict=True):
        yield Line(*one[:3], (one[3], other[3]))
    texts = dict.fromkeys(name for plan in (first, second) for name in plan.chosen.measured.get("texts", {}))
    for name in texts:
        yield Line("loses", f"KL, {name}", "nats", (_on(first, name), _on(second, name)))


def _on(plan: Plan, text: str) -> float | None:
    found = plan.chosen.measured.get("texts", {}).get(text)
    return None if found is None else found["kl"]


def _values(plan: Plan) -> Iterator[tuple[str, str, str, Value]]:
    """(group, name, unit, value), the same names in the same order for every plan."""
    chosen, limits, load = plan.chosen, plan.limits, plan.workload
    yield "asked", "model", "", plan.model["name"]
    yield "asked", "supernet", "", plan.fingerprint[:12]
    yield "asked", "device", "", plan.device["name"]
    yield "asked", "host", "", plan.device.get("host")
    yield "asked", "runtime", "", plan.runtime
    yield "asked", "context", "tokens", load.context
    yield "asked", "batch", "", load.batch
    yield "asked", "prompt", "tokens", load.prompt_tokens
    yield "asked", "KV cache", "", plan.kv_cache["type"] if plan.kv_cache else load.kv_cache
    yield "asked", "layers on the GPU", "", load.gpu_layers
    yield "asked", "GPUs", "", load.gpus if load.gpus > 1 else None
    yield "limit", "peak memory", "bytes", limits.memory_bytes
    yield "limit", "peak host memory", "bytes", limits.host_memory_bytes
    yield "limit", "weight files", "bytes", limits.disk_bytes
    yield "limit", "time per token", "ms", limits.tpot_ms
    yield "limit", "time to first token", "ms", limits.ttft_ms
    yield "limit", "loss", "nats", limits.max_kl
    yield "promise", "peak memory", "bytes", chosen.memory_bytes
    yield "promise", "peak host memory", "bytes", chosen.host_bytes
    yield "promise", "sequences at once", "", plan.share.sequences if plan.share else None
    yield "promise", "basis of memory", "", plan.memory.basis
    yield "promise", "weight files", "bytes", chosen.disk_bytes
    yield "promise", "time per token", "ms", chosen.tpot_ms
    yield "promise", "time to first token", "ms", chosen.ttft_ms
    yield "promise", "basis of times", "", plan.latency.basis
    yield "promise", "mean bits of linears", "bits", chosen.mean_bits
    yield "loses", "found by", "", chosen.source
    yield "loses", "KL, predicted", "nats", chosen.predicted_kl
    yield "loses", "KL, measured", "nats", chosen.measured.get("kl")
    yield "loses", "before it was tuned", "nats", None if plan.tuned is None else plan.tuned.before.get("kl")
