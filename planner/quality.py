"""What subnets were measured to lose on texts that did not train, kept so that each is measured once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from records.atomic import write_json
from records.errors import InputError
from records.lock import locked
from records.reading import as_record, read_json
from supernet.space import Subnet

EVALUATIONS_FILE = "evaluations.json"
LOT = 16
"""Subnets that are measured together: what they have in common is computed once, and each lot is kept."""


MEASURED_AS = 2
"""Which definition a kept measurement is by: what was measured by another is measured again."""


class TextStatistics(TypedDict):
    """As `supernet.quality.Statistics`."""

    kl_error: float
    kl_percentiles: dict[str, float]
    top1_error: float
    p_mean: float
    p_mean_error: float
    p_rms: float
    p_rms_error: float
    p_percentiles: dict[str, float]
    perplexity_error: float
    full_perplexity_error: float
    ratio: float
    ratio_error: float
    correlation: float | None


class TextQuality(TypedDict):
    """Measured on one text: `kl` in nats per token to the full model, and half of its 95 % interval."""

    kl: float
    kl_interval: NotRequired[float | None]
    perplexity: NotRequired[float]
    full_perplexity: NotRequired[float | None]
    top1: NotRequired[float]
    tokens: NotRequired[int]
    windows: NotRequired[int]
    text: NotRequired[str]  # what text it is, in words
    statistics: NotRequired[TextStatistics | None]


class Measured(TypedDict, total=False):
    """Measured over several texts, none of which trained: `kl` is the mean of theirs. {} where nothing was measured."""

    kl: float
    texts: dict[str, TextQuality]


Evaluations = dict[str, dict[str, TextQuality]]
"""Supernet, definition and text -> digest of a subnet -> what it was measured to lose."""

Quality = Mapping[str, Any]
"""A `TextQuality` or a `Measured`."""

Measure = Callable[[Sequence[Subnet]], Sequence[Quality]]
MeasureTexts = Callable[[Sequence[Subnet], Sequence[str]], Sequence[Mapping[str, Quality]]]
"""Subnets and names of texts -> for each subnet its quality on each text."""


class MeasuredQuality:
    """Measures subnets once on each text: results are kept in a file, by supernet, digest of the text, and subnet.

    `texts` are digests by name. `spare` is where results are kept when `path` may only be read. Where neither can be
    written they are not kept, and nothing else is lost.
    """

    def __init__(
        self, path: Path, supernet: str, texts: Mapping[str, str], measure: MeasureTexts, spare: Path | None = None
    ) -> None:
        self.places = (path,) if spare is None else (path, spare)
        self.keys = {name: f"{supernet}/{MEASURED_AS}/{digest}" for name, digest in texts.items()}
        self.measure = measure
        self.measured = 0

    def __call__(self, subnets: Sequence[Subnet]) -> list[Quality]:
        known = self._known()
        unknown = {name: [s for s in subnets if s.digest not in known[name]] for name in self.keys}
        texts = [name for name, lacking in unknown.items() if lacking]
        new = list(dict.fromkeys(subnet for lacking in unknown.values() for subnet in lacking))
        for start in range(0, len(new), LOT):
            lot = new[start : start + LOT]
            found: dict[str, dict[str, Quality]] = {name: {} for name in texts}
            for subnet, qualities in zip(lot, self.measure(lot, texts), strict=True):
                for name in texts:
                    found[name][subnet.digest] = as_quality(qualities[name])
            self.measured += len(lot)
            for name in texts:
                known[name] |= found[name]
            self._keep({self.keys[name]: found[name] for name in texts})
        return [over_texts({name: dict(known[name][subnet.digest]) for name in self.keys}) for subnet in subnets]

    def _known(self) -> dict[str, dict[str, Quality]]:
        stored = [_read(place) for place in self.places]
        return {name: {d: q for one in stored for d, q in one.get(key, {}).items()} for name, key in self.keys.items()}

    def _keep(self, found: Mapping[str, Mapping[str, Quality]]) -> None:
        """Add to what is kept by now: another plan may have written while these were measured."""
        for place in self.places:
            with contextlib.suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                with locked(place, "another plan", waiting=lambda line: None):
                    stored = _read(place)
                    for key, qualities in found.items():
                        stored.setdefault(key, {}).update(qualities)
                    write_json(place, stored)
                return  # not reached where this place cannot be written


def over_texts(by_text: Mapping[str, Quality]) -> Quality:
    """One number to rank by, the mean over the texts, and what it is the mean of."""
    return {"kl": sum(quality["kl"] for quality in by_text.values()) / len(by_text), "texts": dict(by_text)}


def measured_on(measured: Quality) -> Iterator[str]:
    """On what a subnet was measured, in a line: texts, their size, KL and its interval."""
    if "texts" in measured:
        parts = [f"{_text(name, quality)}: KL {with_interval(quality)}" for name, quality in measured["texts"].items()]
        ranked = "; subnets are ranked by the mean" if len(parts) > 1 else ""
        yield f"measured with 95 % intervals on {', '.join(parts)}{ranked}"


def _text(name: str, quality: Quality) -> str:
    source = quality.get("text", name)
    said = name if source == name else f"{name} ({source})"
    return f"{said}, {quality['windows']} windows, {quality['tokens']} tokens"


def with_interval(quality: Quality) -> str:
    interval = quality.get("kl_interval")
    return f"{quality['kl']:.4g}" if interval is None else f"{quality['kl']:.4g} ± {interval:.2g}"


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    data = read_json(path, "cache of evaluations", f"delete {path}")
    try:
        return cast(dict[str, Any], as_record(Evaluations, data, "evaluations"))
    except InputError as error:
        raise InputError(f"{path}: {error}; delete {path}") from None


def as_quality(value: Any) -> dict[str, Any]:
    """The plain dict of a measurement, from a dict or a dataclass with those fields."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)
