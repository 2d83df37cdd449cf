"""A plan in rows of text, which the terminal and the page show alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from planner.amounts import amount, milliseconds, per_second, sequences, size, sizes
from planner.limits import LIMITS, MEMORY, TPOT, TTFT, Limit
from planner.overview import summed
from planner.plan import LARGER, PLANNED, UNMEASURED, WORSE, Compared, Notch, Plan, Point, Rejected
from planner.quality import with_interval
from planner.runtimes import RUNTIMES
from planner.runtimes.base import DEVICE, ESTIMATE, HOST
from planner.shortage import readable
from planner.statistics import main_lines

REASONS = {WORSE: "loses more", LARGER: "takes more memory", UNMEASURED: "was not measured"}


def title(made: Plan) -> str:
    """What is planned for what."""
    load = made.workload
    cache = f", {made.kv_cache['type']} KV cache" if made.kv_cache else ""
    return (
        f"{made.model['name']} on {made.device['name']} with {made.runtime}: context {load.context}, "
        f"batch {load.batch}, prompt {load.prompt_tokens} tokens{cache}{_divided(made)}{_placed(made)}"
    )


def _divided(made: Plan) -> str:
    return f", divided over {made.workload.gpus} GPUs" if made.workload.gpus > 1 else ""


def _placed(made: Plan) -> str:
    placed = made.placement
    if placed is None or "host" not in made.device:
        return ""
    whole = placed["gpu_layers"] == placed["layers"]
    said = "all" if whole else f"{placed['gpu_layers']} of"
    return f", {said} {placed['layers']} layers on the GPU, in {made.device['host']}"


def lead(made: Plan) -> str:
    """In a line what the plan is worth beside the best uniform subnet, and what that rests on."""
    chosen, uniform, most = made.chosen, made.uniform, made.limits.max_kl
    how = "measured on text that no search saw" if chosen.measured else "predicted, nothing was measured"
    said = f"KL {chosen.kl:.4g} a token in {size(chosen.memory_bytes)}, {how}"
    if chosen.kind != PLANNED:
        return f"{said}; {chosen.source}, no mixture was found to be better"
    if uniform is None or (most is not None and uniform.kl > most):
        return f"{said}; no uniform subnet keeps these limits"
    if most is not None:
        return f"{said}; {uniform.source} within this loss takes {size(uniform.memory_bytes)}"
    return f"{said}; {uniform.source} within these limits loses {uniform.kl:.4g}"


def room(made: Plan) -> str | None:
    """How much context the limit of memory would hold; None where nobody asked."""
    found = made.context_room
    if found is None:
        return None
    said = f"this subnet holds a context of up to {found['planned']} tokens within the limit of memory"
    if found["planned"] == made.model.get("max_context"):
        return f"{said}, all that the model can"
    return f"{said}, the smallest subnet up to {found['smallest']}"


def shared(made: Plan) -> str | None:
    """What the runtime takes of each GPU at once, and the sequences that fit into it; None where it does not."""
    share, load = made.share, made.workload
    if share is None:
        return None
    each = "each GPU" if load.gpus > 1 else "the GPU"
    return (
        f"of {each} {made.runtime} takes {share.utilization:.4g}, of which {size(share.pool_bytes)} are for keys and "
        f"values: {share.blocks} blocks of {share.block_tokens} tokens, room for {sequences(share.sequences)} "
        f"sequences of {load.context} tokens at once ({load.batch} planned for, more with --batch)"
    )


def start(made: Plan) -> str | None:
    """The command that has a package of the plan served with just that; None where no share is said."""
    if made.share is None or made.runtime not in RUNTIMES:
        return None
    packages = RUNTIMES[made.runtime]().packages
    return f"its package is started with: {packages.command(Path('DIR'), made.workload, made.share)}"


def tuned(made: Plan) -> str | None:
    """What training the scales for this subnet alone won; None where they are the supernet's."""
    own = made.tuned
    if own is None:
        return None
    before, after = own.before.get("kl"), made.chosen.measured.get("kl")
    won = "" if before is None or after is None else f": KL {after:.4g} instead of {before:.4g}"
    return f"tuned for this plan alone in {own.steps} steps, {own.units} of {own.linears} linears have new scales{won}"


def columns(made: Plan) -> tuple[Compared, ...]:
    """The plan, and the best uniform subnet where that is another."""
    uniform = made.uniform
    return (made.chosen,) if uniform is None or uniform is made.chosen else (made.chosen, uniform)


def promises(made: Plan) -> list[tuple[str, ...]]:
    """A name, the value of each of `columns`, the limit, and what it rests on."""
    shown, limits = columns(made), made.limits
    tpot, ttft = [c.tpot_ms for c in shown], [c.ttft_ms for c in shown]
    least = "-" if limits.tpot_ms is None else f"at least {per_second(limits.tpot_ms)}"
    return [
        (memory_name(made), *(size(c.memory_bytes) for c in shown), size(limits.memory_bytes), _basis(made, MEMORY)),
        *_of_host(made),
        ("weight files", *(size(c.disk_bytes) for c in shown), size(limits.disk_bytes), "exact"),
        ("time per token", *map(milliseconds, tpot), milliseconds(limits.tpot_ms), _basis(made, TPOT)),
        ("tokens per second", *map(per_second, tpot), least, "of each sequence"),
        ("time to first token", *map(milliseconds, ttft), milliseconds(limits.ttft_ms), _basis(made, TTFT)),
        ("mean bits of linears", *(f"{c.mean_bits:.2f}" for c in shown), "-", "exact"),
        ("KL per token", *(f"{c.predicted_kl:.4g}" for c in shown), "-", "predicted"),
        *_measured(made),
        *_kept(made),
    ]


def memory_name(made: Plan) -> str:
    return "peak memory of each GPU" if made.workload.gpus > 1 else "peak memory"


def _of_host(made: Plan) -> Iterator[tuple[str, ...]]:
    """Memory of the machine that a GPU is in."""
    shown = columns(made)
    if any(c.host_bytes for c in shown):
        limit = size(made.limits.host_memory_bytes)
        yield "peak host memory", *(size(c.host_bytes) for c in shown), limit, _basis(made, MEMORY)


def _measured(made: Plan) -> Iterator[tuple[str, ...]]:
    """What was measured of the subnets: on each text, then the mean that they were ranked by."""
    shown, most = columns(made), made.limits.max_kl
    texts = shown[0].measured.get("texts", {})
    for name in texts:
        found = [c.measured.get("texts", {}).get(name) for c in shown]
        yield f"KL, {name}", *("-" if one is None else with_interval(one) for one in found), "-", "measured"
        yield f"top-1 agreement, {name}", *map(_top1, found), "-", "measured"
    if "kl" in shown[0].measured and len(texts) != 1:
        means = (f"{c.measured['kl']:.4g}" if "kl" in c.measured else "-" for c in shown)
        limit = "-" if most is None else f"{most:.4g}"
        yield "KL, mean over texts" if texts else "KL per token", *means, limit, "measured"


def statistics(made: Plan) -> list[tuple[str, ...]]:
    """(text, what, value of each of `columns`) of how the measured loss is spread over tokens."""
    shown = columns(made)
    rows: list[tuple[str, ...]] = []
    for name, quality in shown[0].measured.get("texts", {}).items():
        others = [dict(main_lines(c.measured.get("texts", {}).get(name, {}))) for c in shown[1:]]
        rows += [(name, what, value, *(one.get(what, "-") for one in others)) for what, value in main_lines(quality)]
    return rows


def _kept(made: Plan) -> Iterator[tuple[str, ...]]:
    """What keys and values lose beside that, where they are rounded."""
    cache = made.kv_cache
    if cache is not None and cache.get("kl"):
        yield f"and of {cache['type']} keys and values", *(f"{cache['kl']:.4g}" for _ in columns(made)), "-", "measured"


def _top1(quality: Mapping[str, Any] | None) -> str:
    return "-" if quality is None or "top1" not in quality else f"{quality['top1']:.3f}"


def _basis(made: Plan, promise: str) -> str:
    """What a promise rests on and its band; an estimate is no promise."""
    basis = made.memory.basis if promise == MEMORY else made.latency.basis
    band = made.bands[promise]
    if basis != ESTIMATE:
        return f"{basis}, within +{band:.0%}" if band else basis
    spread = made.latency.spread if promise == TPOT else 0.0
    return f"{basis}, give or take {spread:.0%}" if spread else basis


def beside(made: Plan) -> list[tuple[str, str, str, str, str]]:
    """(name, peak memory, time per token, KL, why not) of what could have been the plan, then of a little more and less
    memory."""
    rows = [
        (
            f"mixed, {one.name}" if one.kind == PLANNED else one.name,
            size(one.memory_bytes),
            milliseconds(one.tpot_ms),
            f"{one.kl:.4g} {'measured' if one.measured else 'predicted'}",
            why(made, one),
        )
        for one in made.rejected
    ]
    return [*rows, *(_notch(made, notch) for notch in made.notches)]


FRONT = ("THE FRONT, MEASURED", "PEAK MEMORY", "PER TOKEN", "KL", "WITHIN")


def front(made: Plan) -> list[tuple[str, str, str, str, str]]:
    """(mean bits, peak memory, time per token, KL, the limits that this takes) of what a study measured, the plan
    marked; none where there was no study."""
    points = made.front if all(point.measured for point in made.front) else ()
    memory = sizes([one.memory_bytes for one in points])
    return [
        (f"{one.mean_bits:.2f} bits{_planned(made, one)}", taken, milliseconds(one.tpot_ms), f"{one.kl:.4g}",
         " ".join(_flags(made, one)))
        for one, taken in zip(points, memory, strict=True)
    ]  # fmt: skip


def _planned(made: Plan, one: Point) -> str:
    """What a point of the front is called beside its bits where it is the plan: it was measured before a tuning."""
    chosen, own = made.chosen, made.tuned
    kl = chosen.kl if own is None else own.before.get("kl", chosen.kl)
    if (one.memory_bytes, one.tpot_ms, one.kl) != (chosen.memory_bytes, chosen.tpot_ms, kl):
        return ""
    return ", the plan" if own is None else ", the plan before it was tuned"


def _flags(made: Plan, one: Point) -> Iterator[str]:
    """Limits that leave it room, in four digits, what a promise may be off by included."""
    for name, taken in ((MEMORY, float(one.memory_bytes)), (TPOT, one.tpot_ms or 0.0)):
        said = readable(LIMITS[name].unit, taken * (1 + made.bands[name]) * (1 + 1e-9), math.ceil)
        yield LIMITS[name].flag.format(said.replace(" ", ""))


def why(made: Plan, one: Rejected) -> str:
    """Why it is not the plan."""
    if not one.over:
        return REASONS.get(one.reason, one.reason)
    return f"over by {' and '.join(_over(made, name, by) for name, by in one.over.items())}"


def _over(made: Plan, name: str, by: float) -> str:
    band = made.bands.get(name, 0.0)
    within = f" (its band of {band:.0%} included)" if band else ""
    limit = LIMITS.get(name, Limit(name, ""))  # a plan is a file that anybody may edit
    return f"{amount(by, limit.unit)} of {limit.words}{within}"


def _notch(made: Plan, notch: Notch) -> tuple[str, str, str, str, str]:
    name = f"{abs(notch.share):.0%} {'more' if notch.share > 0 else 'less'} memory"
    if notch.kl is None:
        return name, size(notch.limit_bytes), "", "", "too little for any subnet"
    if notch.kl == notch.instead_of:
        said = "nothing to win" if notch.share > 0 else "nothing to lose"
    else:
        within = made.limits.memory_bytes if made.limits.max_kl is None else made.chosen.memory_bytes
        said = f"instead of {notch.instead_of:.4g} within {size(within)}"
    return name, size(notch.memory_bytes), "", f"{notch.kl:.4g} predicted", said


def others(made: Plan) -> list[tuple[str, str, str, str, str, str]]:
    """(runtime, peak memory, time per token, KL, basis of the time, why not) of the runtimes that were not chosen."""
    rows = []
    for other in made.others:
        if other.refused:
            rows.append((other.runtime, "-", "-", "-", "", other.refused))
        else:
            kl = "-" if other.kl is None else f"{other.kl:.4g}"
            cells = size(other.memory_bytes), milliseconds(other.tpot_ms), kl
            why = "" if other.context is None else f"context of {other.context} at most"
            rows.append((other.runtime, *cells, f"{other.latency_basis}", why))
    return rows


def items(made: Plan) -> dict[str, dict[tuple[str, str], float]]:
    """Peak memory, that of the host, and time per token by (item, basis); the linears, of which there are hundreds, as
    one."""
    tables = made.model.get("tables", ())
    pools = {pool: [item for item in made.memory.items if item.pool == pool] for pool in (DEVICE, HOST)}
    host = {"peak host memory": summed(pools[HOST], tables)} if pools[HOST] else {}
    return {
        memory_name(made): summed(pools[DEVICE], tables), **host, "time per token": summed(made.latency.decode, tables)
    }  # fmt: skip
