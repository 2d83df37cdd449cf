"""What a model reaches in a task, and how much of the full model's that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
FEWEST = 2  # examples that an interval takes
UNSEEN = 3.0
CLOSE = 1e-9


@dataclass(frozen=True)
class Score:
    """One metric of one task. `by_example` has one number for each example where `value` is their mean, else it is
    empty. A metric may say that it is no number, which JSON has as null."""

    task: str
    metric: str
    value: float
    stderr: float | None
    examples: int
    higher_is_better: bool = True
    by_example: tuple[float, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        return self.task, self.metric

    def to_json(self) -> dict[str, Any]:
        plain = {name: value for name, value in asdict(self).items() if name != "by_example"}
        return {**plain, "value": self.value if math.isfinite(self.value) else None}


@dataclass(frozen=True)
class Recovery:
    """The share of the full model's value, in percent, and half of its 95 % interval where examples can be paired."""

    percent: float
    interval: float | None


def recovery(ours: Score, full: Score) -> Recovery | None:
    """None where less is better, where the full model has nothing, and where one of them has no number.

    The interval is of a ratio of means, by the delta method over examples: both answered the same ones, so what differs
    between them alone counts. Where none of n differs, up to 3 of n may (Hanley and Lippman-Hand, "If nothing goes
    wrong, is everything all right?", JAMA 249, 1983).
    """
    if not ours.higher_is_better or not math.isfinite(ours.value) or not 0 < full.value < math.inf:
        return None
    share = ours.value / full.value
    count = len(full.by_example)
    if count < FEWEST or len(ours.by_example) != count:
        return Recovery(100 * share, None)
    if ours.by_example == full.by_example:
        return Recovery(100.0, 100 * min(1.0, UNSEEN / count / full.value))
    apart = np.array(ours.by_example) - share * np.array(full.by_example)
    error = float(apart.std(ddof=1)) / math.sqrt(count) / full.value
    return Recovery(100 * share, 100 * float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * error)


def means(values: Sequence[Any], value: float) -> tuple[float, ...]:
    """The values as numbers where `value` is their mean, else ()."""
    if not values or not all(isinstance(one, (bool, int, float)) for one in values):
        return ()
    numbers = tuple(float(one) for one in values)
    return numbers if abs(sum(numbers) / len(numbers) - value) <= CLOSE * max(1.0, abs(value)) else ()
