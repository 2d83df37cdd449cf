"""What a subnet is expected to lose, from sensitivities measured once, and what it was measured to lose."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from records.atomic import write_json
from records.errors import InputError
from records.lock import locked
from records.reading import as_record, read_json, read_record
from supernet.space import Choice, SearchSpace, Subnet

SENSITIVITY_FILE = "sensitivity.json"
EVALUATIONS_FILE = "evaluations.json"
_REMEDY = "copy the supernet again, or train it again with `bitfleet train`"

Quality = Mapping[str, float]
"""Measured on held-out text: kl (nats per token to the full model), perplexity, top1 (agreement), tokens."""

Evaluations = dict[str, dict[str, dict[str, float]]]
"""Supernet and text -> digest of a subnet -> what it was measured to lose."""

Measure = Callable[[Sequence[Subnet]], Sequence[Quality]]


@dataclass(frozen=True)
class SensitivityTable:
    """What each unit's choice loses by itself: KL per token to the full model in nats, above that of `base`.

    `base` says what every other unit was while one was changed, `text` what it was measured on, and `supernet` is the
    fingerprint of the weights. Small negative values are noise of the measurement and are kept.
    """

    base: str
    units: Mapping[str, Mapping[str, float]]
    text: Mapping[str, Any] = field(default_factory=dict)
    supernet: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""

    def __post_init__(self) -> None:
        for choices in self.units.values():
            for choice in choices:
                Choice.parse(choice)

    @cached_property
    def by_choice(self) -> dict[str, dict[Choice, float]]:
        return {u: {Choice.parse(c): float(loss) for c, loss in choices.items()} for u, choices in self.units.items()}

    def check(self, space: SearchSpace, fingerprint: str = "") -> None:
        """InputError unless every option of `space` was measured, on the supernet of that fingerprint."""
        if fingerprint and self.supernet and self.supernet != fingerprint:
            raise InputError(f"the sensitivities are of weights that have changed since; {_REMEDY}")
        wanted = [(unit, choice) for unit, choices in space for choice in choices]
        missing = [f"{u} at {c}" for u, c in wanted if c not in self.by_choice.get(u, {})]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(f"every unit's choices need a sensitivity, none for {missing[0]}{more}; {_REMEDY}")

    def predict(self, subnet: Subnet) -> float:
        """The sum over units: what is lost when losses add."""
        return sum(self.by_choice[unit][choice] for unit, choice in subnet)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> SensitivityTable:
        """MissingError or InputError, one line, for a file that is missing, corrupt or something else."""
        return read_record(path, cls, "sensitivity table", _REMEDY)


class MeasuredQuality:
    """Measures subnets once: results are kept in a file, by supernet, text and subnet.

    `spare` is where they are kept when `path` may only be read. Where neither can be written they are not kept, and
    nothing else is lost.
    """

    def __init__(self, path: Path, supernet: str, text: str, measure: Measure, spare: Path | None = None) -> None:
        self.places = (path,) if spare is None else (path, spare)
        self.key = f"{supernet}/{text}"
        self.measure = measure
        self.measured = 0

    def __call__(self, subnets: Sequence[Subnet]) -> list[Quality]:
        known = self._known()
        new = [subnet for subnet in dict.fromkeys(subnets) if subnet.digest not in known]
        if new:
            found = {subnet.digest: as_quality(q) for subnet, q in zip(new, self.measure(new), strict=True)}
            self.measured += len(new)
            known |= found
            self._keep(found)
        return [dict(known[subnet.digest]) for subnet in subnets]

    def _known(self) -> dict[str, Any]:
        return {digest: quality for place in self.places for digest, quality in _read(place).get(self.key, {}).items()}

    def _keep(self, found: Mapping[str, Quality]) -> None:
        """Add to what is kept by now: another plan may have written while these were measured."""
        for place in self.places:
            with contextlib.suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                with locked(place, "another plan", waiting=lambda line: None):
                    stored = _read(place)
                    stored.setdefault(self.key, {}).update(found)
                    write_json(place, stored)
                return  # not reached where this place cannot be written


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    data = read_json(path, "cache of evaluations", f"delete {path}")
    try:
        return cast(dict[str, Any], as_record(Evaluations, data, "evaluations"))
    except InputError as error:
        raise InputError(f"{path}: {error}; delete {path}") from None


def as_quality(value: Any) -> dict[str, float]:
    """The plain dict of a measurement, from a dict or a dataclass with those fields."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)
