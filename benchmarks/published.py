"""How far the estimates for devices that were never measured are off, on published decode speeds of llama.cpp.

    python benchmarks/published.py          judge: each device by shares fitted to all others
    python benchmarks/published.py --fit    print the numbers that profiles/shares.py keeps

`published.csv` has one row a figure: the device with its published bandwidth, model, type, bytes, date, tokens a second
and where it was read. Bytes are the file's where a table printed them, else parameters times bits. A token does not
read an embedding that is no head, so its bytes are taken off. Not taken in: models of experts, IQ types, several cards,
layers left on the host, types or bandwidths that the source does not say, and two rows whose prompt speed shows that
something was wrong with them (an RTX 4080 SUPER at 30 tokens/s, a Ryzen AI Max 385's processor at 3.8).

Fitted to: shares of bandwidth by backend and kind of type, a time for each layer, and what was slower in older builds:
layers before June 2025 and before May 2024 (CUDA graphs), then also types below 4 bits; the estimate leaves that out.
The band comes from what is left on devices that were left out: each device's from the others'. Processors without a dot
product of bytes are not estimated: they compute longer than they read (a Raspberry Pi 400 takes 2.3 times as long), and
the product refuses them. Then, with the product's own code, what two figures of a device, as `llama-bench -o json` has
them, do to its other figures.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import pprint
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from claims import Claim, finish, table
from scipy.optimize import least_squares

from profiles.anchor import figures
from profiles.shares import BACKENDS, FITTED, GROUPS, LAYERS, Deviation, Shares, group_of

TABLE = Path(__file__).with_name("published.csv")
GRAPHS = "2024-05"  # llama.cpp starts a token's CUDA kernels as one graph since
TODAY = "2025-06"  # figures since are of today's builds; before, layers took longer
IN_BAND = 0.8
FEW_DEVICES = 5
PRIOR_SHARE, PRIOR_LAYER_MS, PRIOR_CORE_MS = 0.75, 0.05, 0.004
RECENT = f"since {TODAY}"
LOW_K = "low k"
MOST_PAIRS = 60  # of anchors a device


@dataclass(frozen=True)
class Names:
    """What figures are told apart by."""

    backends: tuple[str, ...]
    groups: tuple[str, ...]


LLAMACPP = Names(BACKENDS, GROUPS)


@dataclass(frozen=True)
class Row:
    """One published figure; `log_ms` is the logarithm of its milliseconds a token."""

    device: str
    backend: str
    cores: int | None
    bandwidth: float  # bytes a second
    model: str
    parameters: float
    layers: int
    type: str
    file_bytes: int
    embedding_bytes: int
    date: str
    tokens_per_s: float

    @property
    def group(self) -> str:
        return group_of(self.type)

    @property
    def read_bytes(self) -> int:
        return self.file_bytes - self.embedding_bytes

    @property
    def log_ms(self) -> float:
        return math.log(1e3 / self.tokens_per_s)

    @property
    def age(self) -> int:
        """0: as today, on processors and by Vulkan always; 1: older; 2: from before CUDA graphs."""
        if self.backend not in ("cuda", "metal"):
            return 0
        return (self.date < GRAPHS) + (self.date < TODAY)

    def llama_bench(self) -> dict[str, Any]:
        """The fields of its JSON that the product reads."""
        backends = {"cpu": "CPU", "cuda": "CUDA", "metal": "MTL,BLAS", "vulkan": "Vulkan"}
        return {
            "backends": backends[self.backend],
            "n_gpu_layers": 0 if self.backend == "cpu" else 99,
            "model_type": f"llama 7B {self.type}",
            "model_size": self.file_bytes,
            "model_n_params": round(self.parameters * 1e9),
            "n_prompt": 0,
            "n_gen": 128,
            "avg_ts": self.tokens_per_s,
        }


def read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(
                r["device"], r["kind"], int(r["cores"]) if r["cores"] else None, float(r["bandwidth_gb_per_s"]) * 1e9,
                r["model"], float(r["parameters_b"]), int(r["layers"]), r["type"], int(r["file_bytes"]),
                int(r["embedding_bytes"]), r["date"], float(r["tokens_per_s"]),
            )
            for r in csv.DictReader(file)
            if r["tier"] != "no dot product"
        ]  # fmt: skip


class Fit:
    """Shares and layer times by robust least squares of logarithms, with a prior that only matters where rows are few:
    groups differ little and alike on all backends."""

    def __init__(self, rows: Sequence[Row], names: Names = LLAMACPP) -> None:
        self._rows, self._names = rows, names
        self._backend = np.array([names.backends.index(r.backend) for r in rows])
        self._group = np.array([names.groups.index(r.group) for r in rows])
        self._ideal_ms = np.array([1e3 * r.read_bytes / r.bandwidth for r in rows])
        self._layers = np.array([r.layers * (r.cores or 1) if r.backend == "cpu" else r.layers for r in rows])
        self._age = np.array([r.age for r in rows])
        self._log_ms = np.array([r.log_ms for r in rows])
        counts = {key: sum((r.device, r.backend) == key for r in rows) for key in {(r.device, r.backend) for r in rows}}
        self._weight = np.array([counts[r.device, r.backend] ** -0.25 for r in rows])
        b, g = len(names.backends), len(names.groups)
        # share of each backend | of each group on all backends | of each group on each backend | layer time |
        # its factor when older | when old | the factor of low K types' shares when old
        self._cuts = np.cumsum([b, g, b * g, b, b, b, 1])
        layer = np.where(np.array(names.backends) == "cpu", PRIOR_CORE_MS, PRIOR_LAYER_MS)
        zeros = np.zeros(b)
        self._prior = np.concatenate(
            [
                zeros + math.log(PRIOR_SHARE),
                np.zeros(g + b * g),
                np.log(layer),
                zeros + math.log(1.5),
                zeros + math.log(2.0),
                [0.0],
            ]
        )
        loose, groups, own, layers, old = [1.0] * b, [2.0] * g, [5.0] * (b * g), [0.7] * b, [1.0] * (2 * b + 1)
        self._pull = np.array([*loose, *groups, *own, *layers, *old])
        self.x = least_squares(self._errors, self._prior, loss="soft_l1").x

    def _split(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Logarithms: share by backend and group, layer time by backend, its factor by age and backend, low K types'
        share when old."""
        backend, group, own, layer, older, old, low_k = np.split(x, self._cuts[:-1])
        share = backend[:, None] + group[None, :] + own.reshape(len(backend), len(group))
        return share, layer, np.stack([0.0 * older, older, old]), float(low_k[0])

    def _errors(self, x: np.ndarray) -> np.ndarray:
        share, layer, by_age, low_k = self._split(x)
        old_low = np.array([r.age == 2 and r.group == LOW_K for r in self._rows])
        slower = np.where(old_low, low_k, 0.0)
        each = np.exp(layer[self._backend] + by_age[self._age, self._backend])
        ms = self._ideal_ms / np.exp(share[self._backend, self._group] + slower) + self._layers * each
        return np.concatenate([(np.log(ms) - self._log_ms) * self._weight / 0.15, (x - self._prior) * self._pull])

    def shares(self) -> Shares:
        share, layer, _, _ = self._split(self.x)
        return Shares(
            share={
                (b, g): float(np.exp(share[i, j]))
                for i, b in enumerate(self._names.backends)
                for j, g in enumerate(self._names.groups)
            },
            layer_ms={b: float(np.exp(layer[i])) for i, b in enumerate(self._names.backends) if b != "cpu"},
            core_layer_ms=float(np.exp(layer[0])),  # of processors, which llama.cpp's backends begin with
            half=FITTED.half,
        )

    def parts_ms(self, row: Row) -> tuple[float, float]:
        """(reading, layers) a token; an older row is estimated as of its time."""
        found = self.shares()
        reading = found.read_ms(row.backend, row.group, row.read_bytes, row.bandwidth)
        beside = found.layers_ms(row.backend, row.layers, row.cores)
        _, _, by_age, low_k = self._split(self.x)
        beside *= float(np.exp(by_age[row.age, self._names.backends.index(row.backend)]))
        reading /= math.exp(low_k) if row.age == 2 and row.group == LOW_K else 1.0
        return reading, beside

    def log_ratio(self, row: Row) -> float:
        """Logarithm of measured over estimated time."""
        return row.log_ms - math.log(sum(self.parts_ms(row)))


def left_out(rows: Sequence[Row], names: Names = LLAMACPP) -> list[float]:
    """What is left of each row after a fit to all other devices."""
    fits = {d: Fit([r for r in rows if r.device != d], names) for d in {r.device for r in rows}}
    return [fits[r.device].log_ratio(r) for r in rows]


def half_bands(
    rows: Sequence[Row], logs: Sequence[float], without: str = "", names: Names = LLAMACPP
) -> dict[str, float]:
    """Half the band by backend, as a logarithm, from the other devices' rows: a backend's deviation, drawn to that of
    all where it has few devices, times what 8 of 10 figures of all backends are within. A device counts as the square
    root of its rows, so that one card's many figures are not the whole band."""
    chosen = [(abs(log), r) for r, log in zip(rows, logs, strict=True) if r.device != without]
    count = Counter((r.device, r.backend) for _, r in chosen)
    size = np.array([log for log, _ in chosen])
    weight = np.array([count[r.device, r.backend] ** -0.5 for _, r in chosen])
    backend = np.array([names.backends.index(r.backend) for _, r in chosen])
    over_all = float(np.average(size**2, weights=weight))
    scale = np.empty(len(names.backends))
    for i, name in enumerate(names.backends):
        mine = backend == i
        devices = sum(1 for _, other in count if other == name)
        own = float(np.average(size[mine] ** 2, weights=weight[mine]))
        scale[i] = math.sqrt((devices * own + FEW_DEVICES * over_all) / (devices + FEW_DEVICES))
    order = np.argsort(size / scale[backend])
    middles = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()
    within = float(np.interp(IN_BAND, middles, (size / scale[backend])[order]))
    return {name: within * float(scale[i]) for i, name in enumerate(names.backends)}


def deviation(rows: Sequence[Row], logs: Sequence[float]) -> Deviation:
    """By pairs of rows of one device and backend: how alike they are, of one kind of type and of two."""
    same: list[float] = []
    other: list[float] = []
    for (a, x), (b, y) in itertools.combinations(zip(rows, logs, strict=True), 2):
        if (a.device, a.backend) == (b.device, b.backend):
            (same if a.group == b.group else other).append((x - y) ** 2 / 2)
    figure2, both2 = float(np.mean(same)), float(np.mean(other))
    by_device: dict[tuple[str, str], list[float]] = {}
    for r, log in zip(rows, logs, strict=True):
        by_device.setdefault((r.device, r.backend), []).append(log)
    total2 = float(np.mean([np.mean(np.square(v)) for v in by_device.values()]))
    group2 = max(both2 - figure2, 0.0)
    return Deviation(math.sqrt(max(total2 - figure2 - group2, 0.01)), math.sqrt(group2), math.sqrt(figure2))


@dataclass(frozen=True)
class Anchored:
    before: list[float]
    after: list[float]
    inside: float  # share of figures within the narrowed band
    ratio: float  # median of its ends' ratio


def anchored(rows: Sequence[Row], logs: Sequence[float], spread: Deviation, count: int) -> Anchored:
    """The error of each row that is no anchor, over sets of `count` anchors of its device; every device counts once.
    Anchors go through the product's reader of llama-bench's JSON, with shares that never saw the device."""
    rng = np.random.default_rng(0)
    before: list[float] = []
    after: list[float] = []
    inside: list[float] = []
    ratios: list[float] = []
    for device, backend in sorted({(r.device, r.backend) for r in rows}):
        mine = [i for i, r in enumerate(rows) if (r.device, r.backend) == (device, backend)]
        if len(mine) <= count:
            continue
        fit = Fit([r for r in rows if r.device != device])
        half = half_bands(rows, logs, device)[backend]
        sets = list(itertools.combinations(mine, count))
        sets = [sets[i] for i in rng.permutation(len(sets))[:MOST_PAIRS]]
        errors: list[tuple[float, float, float]] = []
        for chosen in sets:
            seen = figures([rows[i].llama_bench() for i in chosen], "llama-bench")
            known = [(f.group, _seen(fit, rows[i], f)) for i, f in zip(chosen, seen, strict=True)]
            for i in set(mine) - set(chosen):
                middle = low = high = 0.0
                for part, ms in zip((rows[i].group, LAYERS), fit.parts_ms(rows[i]), strict=True):
                    mean, sd = spread.given(known, part)
                    narrowed = half * sd / spread.total
                    middle += ms * math.exp(mean)
                    low += ms * math.exp(mean - narrowed)
                    high += ms * math.exp(mean + narrowed)
                log = rows[i].log_ms - math.log(middle)
                errors.append((logs[i], log, low <= math.exp(rows[i].log_ms) <= high))
                ratios.append(high / low)
        before.append(float(np.median([abs(math.expm1(-a)) for a, _, _ in errors])))
        after.append(float(np.median([abs(math.expm1(-b)) for _, b, _ in errors])))
        inside.append(float(np.mean([c for _, _, c in errors])))
    return Anchored(before, after, float(np.mean(inside)), float(np.median(ratios)))


def _seen(fit: Fit, row: Row, figure: Any) -> float:
    """As the product sees an anchor: by the file's bytes and a guess of the layers."""
    known = replace(row, file_bytes=figure.file_bytes, embedding_bytes=0, layers=figure.layers)
    return fit.log_ratio(known)


def error(log: float) -> float:
    """Of estimated tokens a second, as a fraction of the measured."""
    return abs(math.expm1(log))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="print the numbers that profiles/shares.py keeps")
    rows = read(TABLE)
    logs = left_out(rows)
    spread = deviation(rows, logs)
    if parser.parse_args().fit:
        _print_fit(rows, logs, spread)
        return
    halves = {device: half_bands(rows, logs, device) for device in {r.device for r in rows}}
    inside = [abs(log) <= halves[r.device][r.backend] for log, r in zip(logs, rows, strict=True)]
    ratios = [math.exp(2 * halves[r.device][r.backend]) for r in rows]
    lines = []
    for name in ("all", *BACKENDS, RECENT):
        mine = [i for i, r in enumerate(rows) if name in ("all", r.backend) or (name == RECENT and r.date >= TODAY)]
        devices = len({(rows[i].device, rows[i].backend) for i in mine})
        lines.append(
            (
                name, devices, len(mine), f"{100 * np.median([error(logs[i]) for i in mine]):.1f} %",
                f"{100 * np.mean([inside[i] for i in mine]):.0f} %", f"{max(ratios[i] for i in mine):.2f}",
            )
        )  # fmt: skip
    table(("left out", "devices", "figures", "median error", "in band", "ends"), lines)
    plain = [error(r.log_ms - math.log(1e3 * r.read_bytes / (PRIOR_SHARE * r.bandwidth))) for r in rows]
    print(f"beside three quarters of the bandwidth for all: median error {100 * np.median(plain):.1f} %\n")
    two = anchored(rows, logs, spread, 2)
    names = ("without", "with two figures", "in band", "ends")
    cells = (f"{100 * np.median(two.before):.1f} %", f"{100 * np.median(two.after):.1f} %")
    table(("devices", *names), [(len(two.before), *cells, f"{100 * two.inside:.0f} %", f"{two.ratio:.2f}")])
    share = float(np.mean(inside))
    finish(
        __file__,
        [
            Claim("median error of the middle, devices left out", float(np.median([error(log) for log in logs])), 0.20),
            Claim("distance of the band's share from 75 to 90 %", max(0.75 - share, share - 0.90, 0.0), 0.0),
            Claim("widest ratio of a band's ends", max(ratios), 2.5),
            Claim("too few figures, of 60", max(0, 60 - len(rows)), 0),
            Claim(
                "median error with two figures over without", float(np.median(two.after) / np.median(two.before)), 0.6
            ),
        ],
        figures=len(rows),
        in_band=share,
        by_backend=[
            dict(zip(("backend", "devices", "figures", "error", "in_band", "ends"), x, strict=True)) for x in lines
        ],
        two_anchors={"devices": len(two.before), "before": np.median(two.before), "after": np.median(two.after)},
    )


def _print_fit(rows: Sequence[Row], logs: Sequence[float], spread: Deviation) -> None:
    fit = Fit(rows)
    found = fit.shares()
    pprint.pp(
        {
            "share": {key: round(value, 3) for key, value in found.share.items()},
            "layer_ms": {b: round(ms, 4) for b, ms in found.layer_ms.items()},
            "core_layer_ms": round(found.core_layer_ms, 5),
            "half": {b: round(half, 3) for b, half in half_bands(rows, logs).items()},
            "by age": np.exp(fit._split(fit.x)[2]).round(2).tolist(),
            "low k when old": round(math.exp(fit._split(fit.x)[3]), 2),
            "deviation": [round(v, 3) for v in (spread.device, spread.group, spread.figure)],
        }
    )


if __name__ == "__main__":
    main()
