"""What a model loses against another on a text, from what both say of each token.

The statistics are those that llama.cpp's llama-perplexity prints with --kl-divergence, by its definitions
(`kl_divergence` in tools/perplexity/perplexity.cpp of ggml-org/llama.cpp): its errors are one standard error of a mean
over tokens, as if these were independent. Neighbours are not, so subnets are told apart by the interval over windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95
PERCENTILES = (0, 0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)
MEDIAN, LARGEST = "50", "100"
MOST_NATS = 700.0  # more than that has no exponential

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Beside the means of a `Quality`. Errors are one standard error over tokens.

    `kl_percentiles` and `p_percentiles` are by the percentage as text, linear between tokens. `p` is how much likelier
    the model takes a token that follows than the full model does, from -1 to 1; `ratio` is the perplexity over the full
    model's; `correlation` is of the two models' surprises, None where one never changes.
    """

    kl_error: float
    kl_percentiles: Mapping[str, float]
    top1_error: float
    p_mean: float
    p_mean_error: float
    p_rms: float
    p_rms_error: float
    p_percentiles: Mapping[str, float]
    perplexity_error: float
    full_perplexity_error: float
    ratio: float
    ratio_error: float
    correlation: float | None

    @classmethod
    def of(cls, kl: Values, same: Values, ours: Values, full: Values) -> Statistics:
        """Of all tokens: KL, whether the likeliest is the same, and the surprise at what follows, each `(tokens,)`."""
        likelier = np.exp(-ours) - np.exp(-full)
        rms = math.sqrt(float(np.mean(likelier**2)))
        share, ratio = float(same.mean()), _exp(float(np.mean(ours - full)))
        return cls(
            kl_error=_error(kl),
            kl_percentiles=_percentiles(kl),
            top1_error=math.sqrt(share * (1 - share) / max(1, len(same) - 1)),
            p_mean=float(likelier.mean()),
            p_mean_error=_error(likelier),
            p_rms=rms,
            p_rms_error=0.5 / rms * _error(likelier**2) if rms else 0.0,
            p_percentiles=_percentiles(likelier),
            perplexity_error=_exp(float(ours.mean())) * _error(ours),
            full_perplexity_error=_exp(float(full.mean())) * _error(full),
            ratio=ratio,
            ratio_error=ratio * _error(ours - full),
            correlation=float(np.corrcoef(ours, full)[0, 1]) if ours.std() and full.std() else None,
        )


@dataclass(frozen=True)
class Quality:
    """`kl` in nats per token from the full model; `top1` the share of tokens whose likeliest successor is the same.

    `tokens` are those with a successor in their window, after what is not measured at its beginning. `kl_interval` is
    half of the 95 % interval of `kl` by how much the windows differ (Student's t), None for a single window;
    `full_perplexity` is the full model's own on the same text.
    """

    kl: float
    perplexity: float
    top1: float
    tokens: int
    windows: int = 1
    kl_interval: float | None = None
    full_perplexity: float | None = None
    statistics: Statistics | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Quality:
        known = data.get("statistics")
        return cls(**{**data, "statistics": None if known is None else Statistics(**known)})

    @classmethod
    def of(cls, found: Values) -> Quality:
        """From KL, agreement, and the surprise of subnet and full model at each token's successor,
        `(windows, tokens, 4)`."""
        kl, same, ours, full = (found[:, :, column].ravel() for column in range(4))
        return cls(
            kl=float(kl.mean()),
            perplexity=_exp(float(ours.mean())),
            top1=float(same.mean()),
            tokens=len(kl),
            windows=len(found),
            kl_interval=_interval(found[:, :, 0].mean(1)),
            full_perplexity=_exp(float(full.mean())),
            statistics=Statistics.of(kl, same, ours, full),
        )


def _interval(by_window: Values) -> float | None:
    count = len(by_window)
    if count < 2:
        return None
    return float(stdtrit(count - 1, (1 + CONFIDENCE) / 2) * by_window.std(ddof=1) / math.sqrt(count))


def _error(values: Values) -> float:
    """The standard error of the mean, 0 for a single value."""
    return float(values.std()) / math.sqrt(max(1, len(values) - 1))


def _percentiles(values: Values) -> dict[str, float]:
    found = np.percentile(values, PERCENTILES)
    return {f"{percent:g}": float(value) for percent, value in zip(PERCENTILES, found, strict=True)}


def _exp(nats: float) -> float:
    return math.exp(min(nats, MOST_NATS))
