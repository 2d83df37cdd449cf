"""A plan as one page for people: what it promises and what was measured of it, what stands beside it, its bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from planner.amounts import milliseconds, size, sizes
from planner.fleet.receipts import Receipt
from planner.limits import MEMORY
from planner.margins import said
from planner.pages import environment
from planner.plan import PLANNED, UNIFORM, Plan, Point
from planner.summary import (
    beside,
    columns,
    front,
    items,
    lead,
    memory_name,
    others,
    promises,
    room,
    shared,
    start,
    statistics,
    title,
    tuned,
)

SMALLEST_KL, LARGEST_KL = 1e-5, 1e3
"""The axis of losses ends here: below is what two measurements of one subnet differ by, and nothing loses more."""
WIDEST = 1.6
"""A limit of memory that is so many times all that is drawn stays off the axis."""
MARGIN = 0.06


@dataclass(frozen=True)
class Dot:
    """A subnet in the chart: where, in percent from the left and the top, its class, and what it is in words."""

    x: float
    y: float
    kind: str
    mark: str
    title: str


@dataclass(frozen=True)
class Tick:
    place: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Loss, on a logarithmic scale, over peak memory; all places are in percent."""

    dots: tuple[Dot, ...]
    line: str
    memory: tuple[Tick, ...]
    losses: tuple[Tick, ...]
    memory_limit: float | None
    loss_limit: float | None


@dataclass(frozen=True)
class Scale:
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Scale:
        low, high = min(values), max(values)
        room = MARGIN * (high - low) or abs(high) * MARGIN or 1.0
        return cls(low - room, high + room)

    def at(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def ticks(self, most: int) -> Iterator[float]:
        """Round numbers, `most` at most."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        first = math.ceil(self.low / step)
        yield from (step * number for number in range(first, math.floor(self.high / step) + 1))


def card(made: Plan, receipt: Receipt | None = None) -> str:
    """The whole HTML of a plan, and beside its promises what a receipt of its package says."""
    found = items(made)
    template = environment().get_template("card.html")
    return template.render(
        plan=made,
        title=title(made),
        lead=lead(made),
        room=room(made),
        shared=shared(made),
        start=start(made),
        tuned=tuned(made),
        columns=columns(made),
        promises=promises(made),
        statistics=statistics(made),
        front=front(made),
        beside=beside(made),
        others=others(made),
        margins=[said(one) for one in made.margins],
        chart=chart(made),
        memory=_shares(found[memory_name(made)]),
        host_memory=_shares(found.get("peak host memory", {})),
        times=_shares(found["time per token"]),
        receipt=receipt,
    )


def _shares(items: Mapping[tuple[str, str], float]) -> list[tuple[str, float, float]]:
    """(item, amount, percent of all), the largest first."""
    sums: dict[str, float] = {}
    for (name, _), value in items.items():
        sums[name] = sums.get(name, 0) + value
    total = sum(sums.values()) or 1
    return [(name, sums[name], 100 * sums[name] / total) for name in sorted(sums, key=sums.__getitem__, reverse=True)]


def chart(made: Plan) -> Chart:
    """The plan among what stands beside it, and the front where the plan has one: its line is of memory alone."""
    subnets = list(_subnets(made))
    limit = made.limits.memory_bytes / (1 + made.bands[MEMORY])  # subnets beyond it do not keep it for sure
    memory = [one[1] for one in subnets] + [float(point.memory_bytes) for point in made.front]
    shown = limit <= WIDEST * max(memory)
    losses = [_log(one[2]) for one in subnets] + [_log(point.kl) for point in made.front]
    if made.limits.max_kl is not None:
        losses.append(_log(made.limits.max_kl))
    across, down = Scale.over([*memory, *([limit] if shown else [])]), Scale.over(losses)
    ticks = list(across.ticks(6))
    return Chart(
        dots=tuple(
            Dot(across.at(taken), 100 - down.at(_log(kl)), kind, mark, title)
            for kind, taken, kl, mark, title in reversed(subnets)
        ),
        line=" ".join(
            f"{across.at(point.memory_bytes):g},{100 - down.at(_log(point.kl)):g}" for point in _of_memory(made.front)
        ),
        memory=tuple(Tick(across.at(value), text) for value, text in zip(ticks, sizes(ticks), strict=True)),
        losses=tuple(Tick(100 - down.at(value), text) for value, text in _decades(down)),
        memory_limit=across.at(limit) if shown else None,
        loss_limit=None if made.limits.max_kl is None else 100 - down.at(_log(made.limits.max_kl)),
    )  # fmt: skip


def _subnets(made: Plan) -> Iterator[tuple[str, float, float, str, str]]:
    """(class, memory, loss, mark, in words), the plan first."""
    chosen = made.chosen
    said = _words("the plan", chosen.memory_bytes, chosen.kl, bool(chosen.measured))
    yield "plan", float(chosen.memory_bytes), chosen.kl, "", said
    for one in made.rejected:
        mark = f"{one.mean_bits:.0f}" if one.kind == UNIFORM else ""
        kind = f"{'mixed' if one.kind == PLANNED else one.kind}{'' if one.measured else ' predicted'}"
        yield kind, float(one.memory_bytes), one.kl, mark, _words(one.name, one.memory_bytes, one.kl, one.measured)
    known = {(chosen.memory_bytes, chosen.kl), *((one.memory_bytes, one.kl) for one in made.rejected)}
    for point in made.front:
        if point.measured and (point.memory_bytes, point.kl) not in known:
            name = f"{point.mean_bits:.2f} bits, {milliseconds(point.tpot_ms)} a token"
            yield "front", float(point.memory_bytes), point.kl, "", _words(name, point.memory_bytes, point.kl, True)


def _of_memory(front: Sequence[Point]) -> Iterator[Point]:
    """Of a front by memory, the points that lose less than all smaller ones; the others take less time."""
    least = math.inf
    for point in front:
        if point.kl < least:
            least = point.kl
            yield point


def _words(name: str, memory: float, kl: float, measured: bool) -> str:
    return f"{name}: {size(memory)}, KL {kl:.4g} {'measured' if measured else 'predicted'}"


def _log(kl: float) -> float:
    return math.log10(min(max(kl, SMALLEST_KL), LARGEST_KL))


def _decades(scale: Scale) -> Iterator[tuple[float, str]]:
    """1, 2 and 5 of each power of ten; over more than two powers the ones alone."""
    factors = (1, 2, 5) if scale.high - scale.low <= 2 else (1,)
    for power in range(math.floor(scale.low), math.ceil(scale.high) + 1):
        for factor in factors:
            place = power + math.log10(factor)
            if scale.low <= place <= scale.high:
                yield place, f"{factor * 10.0**power:g}"
