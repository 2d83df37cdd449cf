"""An index as one page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.fleet.index import HOST_MEMORY, KL, LOADS, MEMORY, TIME, Amount, Filled, Index, Listed, Loss, Served, Slot
from planner.pages import environment
from records.atomic import write_text

PAGE = "index.html"


def page(index: Index) -> str:
    """The whole HTML. Every number is written as the command line writes it."""
    context: dict[str, Any] = {
        "index": index,
        "served": [device for device in index.devices if device.package is not None],
        "refused": [device for device in index.devices if device.package is None],
        "takers": {p.name: [d.name for d in index.devices if d.package == p.name] for p in index.packages},
        "checks": {p.name: by_device(index, p) for p in index.packages},
        "names": {LOADS: "it loads", KL: "KL to its subnet", **{one: one for one in (MEMORY, HOST_MEMORY, TIME)}},
        "required": [slot for slot in index.slots if slot.holds_something],
        "beside_best": beside_best, "bits": bits, "said": loss, "shares": shares, "whence": whence,
    }  # fmt: skip
    return environment().get_template("fleet.html").render(context)


def write_page(index: Index, folder: Path) -> None:
    write_text(folder / PAGE, page(index))


def by_device(index: Index, package: Listed) -> dict[str, list[Slot]]:
    found: dict[str, list[Slot]] = {}
    for slot in index.slots:
        if slot.package == package.name:
            found.setdefault(slot.device, []).append(slot)
    return found


def whence(filled: Filled) -> str:
    return ", ".join(
        [filled.machine.model, filled.date[:10], *(f"{name} {version}" for name, version in filled.versions.items())]
    )


def loss(found: Loss) -> str:
    interval = "" if found.interval is None else f" ± {found.interval:.2g}"
    return f"{found.kl:.4g}{interval}"


def beside_best(device: Served) -> str:
    """How much more a device loses than with its own best plan, in words."""
    if device.loss is None or device.best_loss is None:
        return ""
    ours, best = device.loss.kl, device.best_loss.kl
    if ours <= best:
        return "its own best"
    return f"own best {best:.4g}" + (f", +{100 * (ours / best - 1):.1f}\u00a0%" if best > 0 else "")


def bits(package: Listed) -> list[tuple[str, str]]:
    """(role, a digit a layer), or one digit for what is no layer's."""
    pairs = (line.rpartition(" ") for line in package.bits.splitlines())
    return [(role, digits) for role, _, digits in pairs]


def shares(memory: tuple[Amount, ...]) -> list[tuple[str, int, float]]:
    """(item, bytes, percent of all) of peak memory."""
    total = sum(item.bytes for item in memory) or 1
    return [(item.name, item.bytes, 100 * item.bytes / total) for item in memory]
