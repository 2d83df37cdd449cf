"""A baseline: what became worse is a line, and what a person changed is said with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from planner.fleet.compare import compared
from planner.fleet.index import Index, Loss
from planner.request import Budget, Workload
from tests.planner.fleet.example import index, loss

LOSS = loss(0.121)


def changed(made: Index, name: str, **changes: Any) -> Index:
    devices = tuple(replace(device, **changes) if device.name == name else device for device in made.devices)
    return replace(made, devices=devices, slots=())


def lines(new: Index, old: Index, allow: float = 0.02) -> list[tuple[bool, str]]:
    return [(one.worse, one.line) for one in compared(new, old, allow)]


def test_the_same_index_has_no_differences() -> None:
    assert compared(index(), index(), 0.0) == ()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"loss": replace(LOSS, kl=0.1265)}, "kiosk: worse, loss 0.121 -> 0.1265, +4.5%, allowed +2%"),
        ({"memory_bytes": 300_000_000}, "kiosk: bigger, memory "),
        ({"disk_bytes": 300_000_000}, "kiosk: bigger, disk "),
        ({"tpot_ms": 6.5}, "kiosk: slower, time per token 6.2 ms -> 6.5 ms, +4.8%, allowed +2%"),
        ({"ttft_ms": 2000.0}, "kiosk: slower, time to first token 68.2 ms -> 2.00 s, "),
        ({"package": None, "refused": "too little"}, "kiosk: is no longer served: too little"),
        ({"tpot_ms": 7.0, "workload": Workload(4096)}, "kiosk: slower, time per token 6.2 ms -> 7.0 ms, +12.9%, "
         "allowed +2% (its workload changed)"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_worse_is_one_line(changes: dict[str, Any], line: str) -> None:
    found = lines(changed(index(), "kiosk", **changes), index())
    assert len(found) == 1
    assert found[0][0] and found[0][1].startswith(line)


def test_what_is_within_what_is_allowed_is_nothing() -> None:
    new = changed(index(), "kiosk", loss=replace(LOSS, kl=0.1265), tpot_ms=6.5)
    assert lines(new, index(), 0.05) == []


def test_what_is_better_is_noted() -> None:
    found = lines(changed(index(), "kiosk", tpot_ms=3.1, budget=Budget(10**9)), index())
    assert found == [(False, "kiosk: better, time per token 6.2 ms -> 3.1 ms, -50.0% (its budget changed)")]


def test_devices_come_and_go() -> None:
    fewer = replace(index(), devices=index().devices[1:], slots=())
    assert lines(fewer, index()) == [(True, "raspberry-pi-5-8gb: is no longer in the fleet")]
    (line,) = lines(index(), fewer)
    assert not line[0] and line[1].startswith("raspberry-pi-5-8gb: is new and takes smollm2-135m-2.9bits-2048-")
    served = changed(index(), "watch", package=index().packages[0].name, refused="")
    assert lines(served, index()) == [(False, "watch: is served now")]


def test_a_predicted_loss_is_not_compared_with_a_measured_one() -> None:
    found = lines(changed(index(), "kiosk", loss=Loss(9.0, False)), index())
    assert found == [(False, "kiosk: loss was measured on held-out, python manual and is predicted now: not compared")]


def test_losses_on_other_texts_are_not_compared() -> None:
    fewer = replace(LOSS, kl=9.0, texts={"held-out": LOSS.texts["held-out"]})
    (line,) = lines(changed(index(), "kiosk", loss=fewer), index())
    assert line == (
        False, "kiosk: loss was measured on held-out, python manual and is measured on held-out now: not compared"
    )  # fmt: skip
