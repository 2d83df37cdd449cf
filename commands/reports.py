"""What a person sees of devices, trainings, plans and checks, as tables on stdout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from commands.terminal import note, say, table
from planner.amounts import amount, milliseconds, rate, size
from planner.rows import BROKEN, HOLDS, Row

if TYPE_CHECKING:
    from planner.differences import Differences
    from planner.fleet.receipts import Receipt
    from planner.plan import Plan
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
        ("host", "" if device.host is None else f"{device.host.name}, usable {size(device.host.usable_bytes)}"),
        ("kernels", _kernels(device)),
        ("basis", "measured" if device.measured else "a datasheet; a plan's latency for it is an estimate"),
        ("date", device.date),
        ("source", device.source),
        ("notes", device.notes),
    ]
    table((), [row for row in rows if row[1]])


def _kernels(device: DeviceProfile) -> str:
    from profiles.gpu_tables import package

    if device.kernels:
        return f"{len(device.kernels.entries)} products measured"
    return "none measured" if package.system_of(device) is None else f"{package.timed()}; none measured here"


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
    experts = {name for unit in files.spec.units for name in unit.experts}
    unread = {name.rpartition(".")[0] for name in files.info.get("unread", [])}
    if unread:
        say(f"{len(unread)} of {len(experts)} experts read no token of it: their codes are rounded to nearest")
    if not steps:
        found = files.info["held_out"]
        say(f"{files.path}: codes alone; KL per token to the full model on the held-out windows")
        losses = [(bits, f"{found['rounding'][bits]:.4f}", f"{kl:.4f}") for bits, kl in found["end"].items()]
        table(("BITS", "ROUNDED TO NEAREST", "CODES"), losses)
        return
    say(f"{files.path}: {steps} steps; KL per token to the full model on text of another kind (the Python manual)")
    table(("BITS", "CODES ALONE", "TRAINED", "KEPT", "ADAPTERS KEPT"), rows)


def print_plan(made: Plan) -> None:
    """What is promised beside the limit and the best uniform subnet, what else there is, the bits, what to know."""
    from planner.margins import said as margin
    from planner.summary import (
        FRONT,
        beside,
        columns,
        front,
        items,
        others,
        promises,
        room,
        shared,
        start,
        title,
        tuned,
    )

    shown = columns(made)
    say(title(made))
    for said in filter(None, (room(made), shared(made), start(made), tuned(made))):
        say(said)
    uniform = [f"BEST UNIFORM ({one.mean_bits:.0f} bits)" for one in shown[1:]]
    table(("", "PLANNED", *uniform, "LIMIT", "BASIS"), promises(made))
    for header, rows in (
        (FRONT, front(made)),
        (("BESIDE IT", "PEAK MEMORY", "PER TOKEN", "KL", ""), beside(made)),
        (("OTHER RUNTIMES", "PEAK MEMORY", "PER TOKEN", "KL", "BASIS OF TIME", ""), others(made)),
    ):
        if rows:
            say()
            table(header, rows)
    for what, sums in items(made).items():
        shown_as = milliseconds if what == "time per token" else size
        say()
        found = [(name, shown_as(value), basis) for (name, basis), value in sums.items() if value]
        table((f"{what}, by item", "", ""), found)
    print_bits(made.bits)
    for one in made.margins:
        say(f"margin: {margin(one)}")
    for line in made.notes:
        say(f"note: {line}")


def print_differences(found: Differences, names: tuple[str, str]) -> None:
    """Two plans side by side, and the bits of the layers in which they differ."""
    rows, group = [], ""
    for line in found.lines:
        if line.values == (None, None):
            continue
        change = "" if not line.differs else "differs" if line.change is None else f"{line.change:+.1%}"
        shown = (value if isinstance(value, str) else amount(value, line.unit) for value in line.values)
        rows.append((line.group if line.group != group else "", line.name, *shown, change))
        group = line.group
    table(("", "", *names, "CHANGE"), rows)
    say()
    say(found.verdict)
    width = max((len(role) for role, _, _ in found.bits), default=0)
    for role, *both in found.bits:
        for start in range(0, max(map(len, both)), 100):
            first, second = (digits[start : start + 100] for digits in both)
            marks = "".join(" " if a == b else "^" for a, b in zip_longest(first, second))
            say()
            say(f"{role:<{width}}  {first}")
            say(f"{'':<{width}}  {second}")
            say(f"{'':<{width}}  {marks}".rstrip())


def print_receipt(receipt: Receipt) -> None:
    """What a receipt says of promises, and where it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in receipt.versions.items())
    say(f"measured on {receipt.machine.model}, {receipt.date[:10]}, {versions}")
    print_rows(receipt.rows)


def write_card(path: Path, made: Plan, receipt: Receipt | None = None) -> None:
    """A plan as a page."""
    from planner.card import card
    from records.atomic import write_text

    write_text(path, card(made, receipt))
    note(f"wrote {path}")


def print_rows(checked: Sequence[Row]) -> None:
    """What was limited and promised beside what was measured."""
    rows = []
    for row in checked:
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
