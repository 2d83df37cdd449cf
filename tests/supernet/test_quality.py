"""Statistics against the sums that llama-perplexity adds up, token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from supernet.quality import PERCENTILES, Quality, Values

WINDOWS, TOKENS, VOCABULARY = 5, 23, 11


def log_softmax(logits: Values) -> Values:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def said() -> tuple[Values, Values, np.ndarray]:
    """Log probabilities of the full model and another, and what follows."""
    rng = np.random.default_rng(0)
    full = 3 * rng.normal(size=(WINDOWS, TOKENS, VOCABULARY))
    ours = full + rng.normal(size=full.shape) * rng.uniform(0.1, 2, (WINDOWS, 1, 1))
    return log_softmax(full), log_softmax(ours), rng.integers(VOCABULARY, size=(WINDOWS, TOKENS, 1))


def per_token(full: Values, ours: Values, following: np.ndarray) -> Values:
    kl = (np.exp(full) * (full - ours)).sum(-1)
    same = (full.argmax(-1) == ours.argmax(-1)).astype(float)
    surprises = [-np.take_along_axis(one, following, -1)[..., 0] for one in (ours, full)]
    return np.stack([kl, same, *surprises], -1)


def as_llama_does(full: Values, ours: Values, following: np.ndarray) -> dict[str, float]:
    """Plain sums over tokens, and what is made of them."""
    sums, count, values = dict.fromkeys(("kl", "kl2", "q", "q2", "b", "b2", "qb", "d", "d2", "d4", "top"), 0.0), 0, []
    for base, quantized, token in zip(
        *(one.reshape(-1, one.shape[-1]) for one in (full, ours, following)), strict=True
    ):
        kl = sum(math.exp(b) * (b - q) for b, q in zip(base, quantized, strict=True))
        q, b = -quantized[token[0]], -base[token[0]]
        difference = math.exp(-q) - math.exp(-b)
        added = {"kl": kl, "kl2": kl**2, "q": q, "q2": q**2, "b": b, "b2": b**2, "qb": q * b}
        added |= {
            "d": difference,
            "d2": difference**2,
            "d4": difference**4,
            "top": float(base.argmax() == quantized.argmax()),
        }
        sums = {name: value + added[name] for name, value in sums.items()}
        count += 1
        values.append(kl)

    def mean_and_error(first: str, second: str) -> tuple[float, float]:
        mean = sums[first] / count
        return mean, math.sqrt((sums[second] / count - mean**2) / (count - 1))

    (kl, kl_error), (q, q_error), (b, b_error) = (mean_and_error(n, f"{n}2") for n in ("kl", "q", "b"))
    covariance = (sums["qb"] / count - q * b) / (count - 1)
    square, square_error = mean_and_error("d2", "d4")
    top = sums["top"] / count
    mean, mean_error = mean_and_error("d", "d2")
    return {
        "kl": kl, "kl_error": kl_error, "perplexity": math.exp(q), "perplexity_error": math.exp(q) * q_error,
        "full_perplexity": math.exp(b), "full_perplexity_error": math.exp(b) * b_error,
        "correlation": covariance / (q_error * b_error), "ratio": math.exp(q - b),
        "ratio_error": math.exp(q - b) * math.sqrt(q_error**2 + b_error**2 - 2 * covariance),
        "top1": top, "top1_error": math.sqrt(top * (1 - top) / (count - 1)), "p_mean": mean, "p_mean_error": mean_error,
        "p_rms": math.sqrt(square), "p_rms_error": 0.5 / math.sqrt(square) * square_error,
    }  # fmt: skip


def percentile(values: Values, fraction: float) -> float:
    ordered = np.sort(values)
    place = fraction * (len(ordered) - 1)
    low = int(place)
    return (1 - (place - low)) * ordered[low] + (place - low) * ordered[min(low + 1, len(ordered) - 1)]


def test_every_statistic_is_llama_perplexity_s(said: tuple[Values, Values, np.ndarray]) -> None:
    quality = Quality.of(per_token(*said))
    plain = quality.to_json()
    flat = {**plain, **plain.pop("statistics")}
    for name, value in as_llama_does(*said).items():
        assert flat[name] == pytest.approx(value, rel=1e-9), name
    found = per_token(*said).reshape(-1, 4)
    likelier = np.exp(-found[:, 2]) - np.exp(-found[:, 3])
    for percent in PERCENTILES:
        name = f"{percent:g}"
        assert flat["kl_percentiles"][name] == pytest.approx(percentile(found[:, 0], percent / 100), abs=1e-12)
        assert flat["p_percentiles"][name] == pytest.approx(percentile(likelier, percent / 100), abs=1e-12)
    assert (quality.tokens, quality.windows) == (WINDOWS * TOKENS, WINDOWS)
    assert Quality.from_json(quality.to_json()) == quality


def test_the_interval_is_student_s_over_windows(said: tuple[Values, Values, np.ndarray]) -> None:
    found = per_token(*said)
    by_window = found[:, :, 0].mean(1)
    low, high = stats.t.interval(0.95, WINDOWS - 1, by_window.mean(), stats.sem(by_window))
    assert Quality.of(found).kl_interval == pytest.approx((high - low) / 2, rel=1e-9)
    assert Quality.of(found[:1]).kl_interval is None


def test_nothing_is_lost_by_the_same_model(said: tuple[Values, Values, np.ndarray]) -> None:
    full, _, following = said
    quality = Quality.of(per_token(full, full, following))
    assert quality.statistics is not None
    assert (quality.kl, quality.top1, quality.statistics.p_rms, quality.statistics.p_rms_error) == (0, 1, 0, 0)
    assert (quality.statistics.ratio, quality.statistics.ratio_error) == (1, 0)


def test_a_single_token_has_numbers_for_everything() -> None:
    quality = Quality.of(np.array([[[0.5, 1.0, 2.0, 1.0]]]))
    assert quality.statistics is not None and quality.statistics.correlation is None
    assert (quality.statistics.kl_error, quality.statistics.ratio) == (0, math.exp(1))


def test_what_is_beyond_floats_stays_a_number() -> None:
    quality = Quality.of(np.array([[[900.0, 0.0, 900.0, 1.0], [900.0, 0.0, 900.0, 2.0]]]))
    assert math.isfinite(quality.perplexity) and quality.statistics is not None
    assert math.isfinite(quality.statistics.ratio_error)
