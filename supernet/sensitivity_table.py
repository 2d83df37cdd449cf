"""What each choice of each unit loses by itself, as a file: written when a supernet is finished, read by every plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from records.atomic import write_json
from records.errors import InputError
from records.reading import read_record
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec
from supernet.ties import tied_table

SENSITIVITY_FILE = "sensitivity.json"
_REMEDY = "copy the supernet again, or train it again with `bitfleet train`"


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

    def tied(self, spec: ModelSpec) -> SensitivityTable:
        """The same in the units of the tied `spec`: what its parts lose adds up."""
        return replace(self, units=tied_table(self.units, spec))

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

    def notes(self) -> Iterator[str]:
        """On what text the sensitivities behind every prediction were measured, in a line."""
        source, windows, tokens = (self.text.get(name) for name in ("source", "windows", "tokens"))
        if source:
            of = f"{windows} windows, {tokens} tokens"
            yield f"predicted from sensitivities on {of}, of what was trained on: {source}"
