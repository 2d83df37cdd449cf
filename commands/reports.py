"""What a person sees of devices, trainings, plans and checks, as tables on stdout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from commands.terminal import say, table
from planner.amounts import amount, milliseconds, per_second, rate, size
from planner.bands import MEMORY, TPOT, TTFT
from planner.overview import summed
from planner.quality import with_interval
from planner.rows import BROKEN, HOLDS
from planner.runtimes.base import ESTIMATE

if TYPE_CHECKING:
    from planner.plan import Compared, ContextRoom, Notch, Plan, Rejected
    from planner.verify import VerifyReport
    from profiles.device import DeviceProfile
    from supernet.checkpoint import SupernetFiles


def print_device(device: DeviceProfile) -> None:
    threads = f"{device.cores_physical} physical, {device.threads} threads used" if device.cores_physical else ""
    rows = [
        ("name", device.name),
        ("model", device.model),
        ("kind", f"{device.kind} {device.architecture or ''}"),
        ("cores", threads),
        ("instruction sets", " ".join(device.instruction_sets)),
        ("memory", f"{size(device.memory_bytes)}, usable {size(device.usable_bytes)}"),
        ("bandwidth", f"{rate(device.bandwidth_bytes_per_s)} {device.bandwidth_basis or ''}"),
        ("kernels", f"{len(device.kernels.entries)} products measured" if device.kernels else "none measured"),
        ("basis", "measured" if device.measured else "a datasheet; a plan's latency for it is an estimate"),
        ("date", device.date),
        ("source", device.source),
        ("notes", device.notes),
    ]
    table((), [row for row in rows if row[1]])


def print_anchors(before: DeviceProfile, after: DeviceProfile) -> None:
    """What a device's own figures made of its estimate, by backend and kind of type."""
    from profiles.shares import FITTED, PARTS, RUNTIME, calibration_name

    rows = []
    for backend, half in FITTED.half.items():
        for part in PARTS:
            name = calibration_name(backend, part)
            found = after.calibration(RUNTIME, name)
            if found is not None and found != before.calibration(RUNTIME, name):
                now = found.spread or 0.0
                rows.append((backend, part, f"{found.value:.2f} x", _times(half), _times(now)))
    say(f"{after.name}: milliseconds a token with llama.cpp, beside the estimate without figures of its own")
    table(("BACKEND", "PART", "MIDDLE", "BAND BEFORE", "BAND NOW"), rows)


def _times(half: float) -> str:
    return f"{math.exp(-half):.2f} to {math.exp(half):.2f} x"


def print_training(files: SupernetFiles) -> None:
    """What the adapters won, by bits; those that lost were dropped."""
    units = sum(not unit.is_table for unit in files.spec.units)
    rows = [
        (
            bits,
            f"{kl['without']:.4f}",
            f"{kl['with']:.4f}",
            f"{kl['kept']:.4f}",
            f"{units - len(kl['dropped'])} of {units}",
        )
        for bits, kl in files.info["trial"].items()
    ]
    steps = files.info["steps"]
    say(f"{files.info['source']}: {files.info['load']}")
    say(f"text: {files.info['text']}")
    say(f"{files.path}: {steps} steps; KL per token to the full model on text of another kind (the Python manual)")
    table(("BITS", "CODES ALONE", "TRAINED", "KEPT", "ADAPTERS KEPT"), rows)


def print_plan(made: Plan) -> None:
    """What is promised beside the limit and the best uniform subnet, then the bits, then what to know."""
    load, chosen, limits = made.workload, made.chosen, made.limits
    uniform = None if made.uniform is chosen else made.uniform
    say(
        f"{made.model['name']} on {made.device['name']} with {made.runtime}: context {load.context}, "
        f"batch {load.batch}, prompt {load.prompt_tokens} tokens"
        + (f", {made.kv_cache['type']} KV cache" if made.kv_cache else "")
    )
    if made.context_room is not None:
        say(_room(made.context_room, made.model.get("max_context")))
    columns = [chosen, *([uniform] if uniform else [])]
    tpot, ttft = [c.tpot_ms for c in columns], [c.ttft_ms for c in columns]
    rows = [
        ("peak memory", *(size(c.memory_bytes) for c in columns), size(limits.memory_bytes), _basis(made, MEMORY)),
        ("weight files", *(size(c.disk_bytes) for c in columns), size(limits.disk_bytes), "exact"),
        ("time per token", *map(milliseconds, tpot), milliseconds(limits.tpot_ms), _basis(made, TPOT)),
        ("tokens per second", *map(per_second, tpot), _at_least(limits.tpot_ms), "of each sequence"),
        ("time to first token", *map(milliseconds, ttft), milliseconds(limits.ttft_ms), _basis(made, TTFT)),
        ("mean bits of linears", *(f"{c.mean_bits:.2f}" for c in columns), "-", "exact"),
        ("KL per token", *(f"{c.predicted_kl:.4f}" for c in columns), "-", "predicted"),
    ]
    rows += measured_rows(columns, limits.max_kl)
    header = ("", "PLANNED", *([f"BEST UNIFORM ({uniform.mean_bits:.0f} bits)"] if uniform else []), "LIMIT", "BASIS")
    table(header, rows)
    print_beside(made)
    print_others(made)
    print_items(made)
    print_bits(made.bits)
    for line in made.notes:
        say(f"note: {line}")


def _room(room: ContextRoom, most: int | None) -> str:
    said = f"this subnet holds a context of up to {room['planned']} tokens within the limit of memory"
    if room["planned"] == most:
        return f"{said}, all that the model can"
    return f"{said}, the smallest subnet up to {room['smallest']}"


def _at_least(tpot_ms: float | None) -> str:
    return "-" if tpot_ms is None else f"at least {per_second(tpot_ms)}"


def measured_rows(columns: Sequence[Compared], max_kl: float | None = None) -> list[tuple[str, ...]]:
    """What was measured of the subnets: on each text, then the mean that they were ranked by."""
    texts = columns[0].measured.get("texts", {})
    rows = []
    for name in texts:
        found = [c.measured.get("texts", {}).get(name) for c in columns]
        for label, shown in (("KL", with_interval), ("top-1 agreement", lambda quality: f"{quality['top1']:.3f}")):
            rows.append((f"{label}, {name}", *("-" if q is None else shown(q) for q in found), "-", "measured"))
    if "kl" in columns[0].measured and len(texts) != 1:
        means = (f"{c.measured['kl']:.4g}" if "kl" in c.measured else "-" for c in columns)
        limit = "-" if max_kl is None else f"{max_kl:.4g}"
        rows.append(("KL, mean over texts" if texts else "KL per token", *means, limit, "measured"))
    return rows


def _basis(made: Plan, promise: str) -> str:
    """What a promise rests on and its band; an estimate is no promise."""
    basis = str((made.memory if promise == MEMORY else made.latency)["basis"])
    band = made.bands[promise]
    if basis != ESTIMATE:
        return f"{basis}, within +{band:.0%}" if band else basis
    spread = made.latency["spread"] if promise == TPOT else 0.0
    return f"{basis}, give or take {spread:.0%}" if spread else basis


def print_beside(made: Plan) -> None:
    """What could have been the plan and why it is not, then what a little more or less memory would do."""
    rows = [
        (
            one.name,
            size(one.memory_bytes),
            milliseconds(one.tpot_ms),
            f"{one.kl:.4g} {'measured' if one.measured else 'predicted'}",
            _why(one),
        )
        for one in made.rejected
    ]
    for notch in made.notches:
        name = f"{abs(notch.share):.0%} {'more' if notch.share > 0 else 'less'} memory"
        if notch.kl is None:
            rows.append((name, size(notch.limit_bytes), "", "", "too little for any subnet"))
        else:
            rows.append((name, size(notch.memory_bytes), "", f"{notch.kl:.4g} predicted", _change(made, notch)))
    if rows:
        say()
        table(("BESIDE IT", "PEAK MEMORY", "PER TOKEN", "KL", ""), rows)


def _change(made: Plan, notch: Notch) -> str:
    if notch.kl == notch.instead_of:
        return "nothing to win" if notch.share > 0 else "nothing to lose"
    return f"instead of {notch.instead_of:.4g} within {size(_limited_to(made))}"


def _limited_to(made: Plan) -> int:
    return made.limits.memory_bytes if made.limits.max_kl is None else made.chosen.memory_bytes


def _why(one: Rejected) -> str:
    from planner.plan import LARGER, WORSE
    from planner.shortage import WORDS

    if not one.over:
        return {WORSE: "loses more", LARGER: "takes more"}.get(one.reason, one.reason)
    words = {**WORDS, "loss": "loss"}
    units = {"memory": "bytes", "disk": "bytes", "tpot": "ms", "ttft": "ms"}
    over = (f"{amount(by, units.get(name, ''))} of {words.get(name, name)}" for name, by in one.over.items())
    return f"over by {' and '.join(over)}"


def print_others(made: Plan) -> None:
    """What the runtimes that were not chosen would do, or why they cannot."""
    if not made.others:
        return
    rows = []
    for other in made.others:
        if other.refused:
            rows.append((other.runtime, "-", "-", "-", "", other.refused))
        else:
            kl = "-" if other.kl is None else f"{other.kl:.4g}"
            cells = size(other.memory_bytes), milliseconds(other.tpot_ms), kl
            rows.append((other.runtime, *cells, f"{other.latency_basis}", ""))
    say()
    table(("OTHER RUNTIMES", "PEAK MEMORY", "PER TOKEN", "KL", "BASIS OF TIME", ""), rows)


def print_items(made: Plan) -> None:
    """Peak memory and time per token by item; the linears, of which there are hundreds, as one."""
    tables = made.model.get("tables", ())
    memory, times = summed(made.memory["items"], "bytes", tables), summed(made.latency["decode"], "ms", tables)
    for title, sums, shown in (("peak memory", memory, size), ("time per token", times, milliseconds)):
        say()
        table(
            (f"{title}, by item", "", ""),
            [(name, shown(value), basis) for (name, basis), value in sums.items() if value],
        )


def print_verified(found: VerifyReport) -> None:
    rows = []
    for row in found.rows:
        cells = [amount(value, row.unit) for value in (row.limit, row.promised, row.measured)]
        verdict = {HOLDS: "holds", BROKEN: "BROKEN"}.get(row.verdict or "", "not checked" if row.open else "")
        allowed = f"+{row.band:.0%}" if row.band else ""
        rows.append((row.name, *cells, allowed, verdict, row.note))
    table(("", "LIMIT", "PROMISED", "MEASURED", "BAND", "", ""), rows)


def print_bits(roles: Mapping[str, str]) -> None:
    """One digit a layer, one line a role; wide models wrap every 100 layers."""
    width = max(map(len, roles), default=0)
    layers = max(map(len, roles.values()), default=0)
    say()
    say(f"{'bits by layer':<{width}}  0 to {layers - 1}", bold=True)
    for role, digits in roles.items():
        for start in range(0, len(digits), 100):
            say(f"{role if start == 0 else '':<{width}}  {digits[start : start + 100]}")
    say()
