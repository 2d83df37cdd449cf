"""The last stage of planning: the finalist that loses least, as a plan with its evidence."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import cast

from planner import mixture
from planner.amounts import size
from planner.bands import BANDS, QUICK, bands, is_quick, products
from planner.frame import Framed
from planner.limits import TPOT
from planner.overview import bits_by_layer
from planner.plan import PLANNED, UNIFORM, CacheRow, Compared, DeviceSummary, ModelSummary, Placement, Plan
from planner.propose import Proposed
from planner.quality import Measured, Quality, measured_on
from planner.runtimes.caches import CacheType
from profiles.device import DeviceProfile
from profiles.kernels import KernelEntry
from records.dates import made_now
from supernet.space import Subnet
from supernet.spec import ModelSpec

MANIFOLD = 5.0
"""Nats: more than `--max-loss` takes as a share of perplexity."""


def choose(
    framed: Framed,
    proposed: Proposed,
    measured: Mapping[Subnet, Quality],
    command: str = "",
    taken: Subnet | None = None,
) -> Plan:
    """The plan of a problem with finalists; those that were not `measured` are judged by their prediction.

    `taken` is the finalist to choose, where others decide; without it the one that loses least is.
    """
    costs, scenario = framed.costs, framed.scenario
    files, runtime, device = scenario.files, scenario.runtime, scenario.device
    compared = _compare(framed, proposed, measured)
    least = compared[0]
    if taken is not None:
        compared = tuple(sorted(compared, key=lambda one: one.subnet != taken))
    best = compared[0]
    return Plan(
        supernet=str(files.path),
        fingerprint=files.fingerprint,
        model=summary(costs.spec),
        runtime=runtime.name,
        device=device_summary(device, runtime.name),
        workload=scenario.workload,
        budget=scenario.budget,
        limits=framed.limits,
        compared=compared,
        memory=costs.memory(best.subnet),
        latency=costs.latency(best.subnet),
        search=proposed.traces,
        dropped=framed.dropped,
        notes=(
            *framed.notes,
            *(_verdict(compared, least) if framed.limits.max_kl is None else _smallest(compared, framed.limits.max_kl)),
            *measured_on(best.measured),
            *scenario.table.notes(),
            *_basis(device, runtime.name),
            *filter(None, [costs.pricing.rests_on()]),
            *mixture.notes(costs.spec, scenario.workload),
        ),
        versions={"python": platform.python_version(), **_versions("scipy", "optuna"), **device.kernels.versions},
        date=made_now(),
        command=command,
        bands=dict(bands(device, runtime.name)),
        bits=bits_by_layer(best.subnet, files.spec),
        kv_cache=cache_row(runtime.cache(scenario.workload), framed.cache_kl),
        placement=_placement(framed),
        share=costs.share(best.subnet, framed.limits.memory_bytes),
    )


def _compare(framed: Framed, proposed: Proposed, measured: Mapping[Subnet, Quality]) -> tuple[Compared, ...]:
    """The finalists with all their numbers, best first: by what they were measured to lose, else by prediction."""
    compared = [
        framed.costs.compared(
            kind, candidate.source, candidate.subnet, candidate.loss,
            measured=cast(Measured, dict(measured.get(candidate.subnet, {}))),
        )
        for kind, candidate in proposed.finalists
    ]  # fmt: skip
    return tuple(sorted(compared, key=partial(_rank, framed.limits.max_kl)))


def _rank(most: float | None, one: Compared) -> tuple[float, ...]:
    """The least loss first; where the loss is limited the smallest within it, then the others."""
    if most is None:
        return (one.kl,)
    return (0.0, one.memory_bytes, one.kl) if one.kl <= most else (1.0, one.kl)


def _verdict(compared: Sequence[Compared], least: Compared) -> Iterator[str]:
    """Whether searching was worth it here, in a line; what sharing costs where another than the `least` was taken."""
    best, uniform = compared[0], next((c for c in compared if c.kind == UNIFORM), None)
    planned = next((c for c in compared if c.kind == PLANNED), None)
    if not best.measured:
        yield "quality is predicted from sensitivities, nothing was measured for this plan"
    if best.kl > least.kl:
        yield f"shared with other devices: KL {best.kl:.4g}, {least.kl:.4g} with this device's own best plan"
    elif not best.measured:
        return
    elif uniform is None:
        yield "no uniform subnet fits this budget"
    elif planned is None:
        yield f"the best subnet for this budget is {uniform.source}"
    elif best.kind != PLANNED:
        loss, other = best.measured["kl"], planned.measured["kl"]
        yield f"{best.source} measured best and was chosen: KL {loss:.4g}, the best mixed subnet {other:.4g}"
    else:
        loss, other = best.measured["kl"], uniform.measured["kl"]
        yield f"KL {loss:.4g} measured, against {other:.4g} of {uniform.source} within the same budget"


def _smallest(compared: Sequence[Compared], most: float) -> Iterator[str]:
    """What was asked of a loss, and what a uniform subnet within it would take."""
    best, uniform = compared[0], next((c for c in compared if c.kind == UNIFORM), None)
    how = "measured" if best.measured else "predicted from sensitivities, nothing was measured for this plan"
    yield f"the smallest within a loss of {most:.4g}{_perplexity(most)}: KL {best.kl:.4g} {how}"
    if uniform is None or uniform.kl > most:
        yield "no uniform subnet within the limits keeps this loss"
    elif best is uniform:
        yield f"{best.source} is the smallest that keeps this loss, and was chosen"
    else:
        more = size(uniform.memory_bytes - best.memory_bytes)
        yield f"{uniform.source}, the smallest uniform subnet that keeps this loss, takes {more} more"


def _perplexity(most: float) -> str:
    """A loss as a share of perplexity, which says nothing to anybody where it is many times over."""
    if most > MANIFOLD:
        return ""
    return f", which is {math.expm1(most):.2%} of perplexity on text that the full model itself would write"


def _basis(device: DeviceProfile, runtime: str) -> Iterator[str]:
    if not device.measured:
        yield f"{device.name} was not measured: what is said of it is from {device.source}"
    elif is_quick(device, runtime):
        count = products(device, runtime)
        yield (
            f"{device.name} was profiled quickly ({count} products): time per token is promised "
            f"within {QUICK[TPOT]:.0%}, {BANDS[TPOT]:.0%} after `bitfleet profile device`, which is worth its minutes"
        )


def _placement(framed: Framed) -> Placement | None:
    scenario = framed.scenario
    numbers, taken = scenario.runtime.placements(scenario.files.spec, scenario.device), scenario.workload.gpu_layers
    return None if taken is None or not numbers else Placement(gpu_layers=taken, layers=numbers[-1])


def cache_row(cache: CacheType, kl: float | None) -> CacheRow:
    return CacheRow(type=cache.name, bits=cache.bits, kl=kl)


def summary(spec: ModelSpec) -> ModelSummary:
    return {
        "name": spec.name,
        "architecture": spec.architecture,
        "layers": spec.num_layers,
        "units": len(spec.units),
        "linear_weights": spec.linear_weights,
        "max_context": spec.max_context,
        "tied": spec.tied,
        "tables": [unit.name for unit in spec.units if unit.is_table],
    }


def device_summary(device: DeviceProfile, runtime: str) -> DeviceSummary:
    names = ("name", "kind", "model", "measured", "source", "date", "threads", "memory_bytes", "usable_bytes")
    again = {"last_level_cache_bytes": device.last_level_cache_bytes, "kernels": _timed_again(device, runtime)}
    host = {} if device.host is None else {"host": device.host.name}
    return cast(DeviceSummary, {name: getattr(device, name) for name in names} | again | host)


def _timed_again(device: DeviceProfile, runtime: str) -> list[KernelEntry]:
    """Two of the runtime's kernels in the profile, of one row and more than a cache holds in a model: what `verify`
    times again, to tell a machine that is slower now from a promise that was wrong."""
    known = [
        e
        for e in device.kernels.entries
        if (e.runtime, e.rows, e.threads) == (runtime, 1, device.threads) and e.out_features < 2**14
    ]
    found: list[KernelEntry] = []
    for bits in (4, 8):
        of = [entry for entry in known if entry.bits == bits]
        found += sorted(of, key=lambda entry: entry.in_features * entry.out_features)[-1:]
    return found


def _versions(*names: str) -> dict[str, str]:
    return {name: metadata.version(name) for name in names}
