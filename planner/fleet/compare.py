"""What became worse, bigger or slower since a baseline, and which devices are gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

from planner.amounts import amount
from planner.fleet.index import Difference, Index, Loss, Served

_FIGURES: tuple[tuple[str, str, str, Callable[[Served], float | None]], ...] = (
    ("loss", "worse", "nats/token", lambda device: device.loss.kl if device.loss else None),
    ("memory", "bigger", "bytes", lambda device: device.memory_bytes),
    ("host memory", "bigger", "bytes", lambda device: device.host_memory_bytes),
    ("disk", "bigger", "bytes", lambda device: device.disk_bytes),
    ("time per token", "slower", "ms", lambda device: device.tpot_ms),
    ("time to first token", "slower", "ms", lambda device: device.ttft_ms),
)


def compared(new: Index, old: Index, allow: float) -> tuple[Difference, ...]:
    """A line for each figure of each device that is off by more than the share `allow`, the worse ones first.

    Less is noted and no failure, and so are new devices. A loss that was measured is not compared with a predicted one,
    nor with one that was measured on other texts.
    """
    before = {device.name: device for device in old.devices}
    now = {device.name: device for device in new.devices}
    found = [Difference(name, "gone", f"{name}: is no longer in the fleet", True) for name in before if name not in now]
    for name, device in now.items():
        found += _of_device(before[name], device, allow) if name in before else _new(device)
    return tuple(sorted(found, key=lambda one: not one.worse))


def _new(device: Served) -> Iterator[Difference]:
    what = f"takes {device.package}" if device.package else f"is not served: {device.refused}"
    yield Difference(device.name, "new", f"{device.name}: is new and {what}", False)


def _of_device(old: Served, new: Served, allow: float) -> Iterator[Difference]:
    changed = ", ".join(_asked(old, new))
    since = f" (its {changed} changed)" if changed else ""
    if new.package is None:
        if old.package is not None:
            yield Difference(new.name, "refused", f"{new.name}: is no longer served{since}: {new.refused}", True)
        return
    if old.package is None:
        yield Difference(new.name, "served", f"{new.name}: is served now{since}", False)
        return
    for what, worse, unit, value in _FIGURES:
        before, now = value(old), value(new)
        if before is None or now is None:
            continue
        if old.loss and new.loss and what == "loss" and (was := _of(old.loss)) != (is_ := _of(new.loss)):
            yield Difference(new.name, what, f"{new.name}: loss was {was} and is {is_} now: not compared", False)
            continue
        slack = allow * abs(before)
        share = f", {now / before - 1:+.1%}" if before > 0 else ""
        figures = f"{what} {amount(before, unit)} -> {amount(now, unit)}{share}"
        if now > before + slack:
            yield Difference(
                new.name, what, f"{new.name}: {worse}, {figures}, allowed +{100 * allow:.3g}%{since}", True
            )
        elif now < before - slack:
            yield Difference(new.name, what, f"{new.name}: better, {figures}{since}", False)


def _of(loss: Loss) -> str:
    """What its number is of: numbers of other kinds, or of other texts, say nothing about each other."""
    return f"measured on {', '.join(sorted(loss.texts)) or 'one text'}" if loss.measured else "predicted"


def _asked(old: Served, new: Served) -> Iterator[str]:
    """What of the fleet file is not as it was: a figure may have changed by that alone."""
    for name, before, now in (
        ("budget", old.budget, new.budget),
        ("workload", old.workload, new.workload),
        ("device", asdict(old.device), asdict(new.device)),
        ("runtime", old.runtime, new.runtime),
    ):
        if before != now:
            yield name
