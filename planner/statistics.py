"""What was measured of a subnet on a text, line by line as llama-perplexity prints it; errors as it says them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.quality import Quality, with_interval

KL_LINES = {
    "100": "KL, maximum", "99.9": "KL, 99.9 %", "99": "KL, 99 %", "95": "KL, 95 %", "90": "KL, 90 %",
    "50": "KL, median", "10": "KL, 10 %", "5": "KL, 5 %", "1": "KL, 1 %", "0": "KL, minimum",
}  # fmt: skip
P_LINES = {
    "100": "Δp, maximum", "99.9": "Δp, 99.9 %", "99": "Δp, 99 %", "95": "Δp, 95 %", "50": "Δp, median", "5": "Δp, 5 %",
    "1": "Δp, 1 %", "0.1": "Δp, 0.1 %", "0": "Δp, minimum",
}  # fmt: skip


def main_lines(quality: Quality) -> Iterator[tuple[str, str]]:
    """(name, value) of what tells two subnets apart, beside the mean of KL; none where it was not measured."""
    found = quality.get("statistics")
    if found is None:
        return
    for percent in ("50", "99", "99.9"):
        yield KL_LINES[percent], f"{found['kl_percentiles'][percent]:.4g}"
    yield "same top token", _percent(quality["top1"], found["top1_error"])
    yield "Δp, RMS", _percent(found["p_rms"], found["p_rms_error"])
    yield "perplexity / full model's", with_error(found["ratio"], found["ratio_error"])


def lines(quality: Quality) -> Iterator[tuple[str, str]]:
    """(name, value) of all of it."""
    yield "KL, mean, 95 %", with_interval(quality)
    found = quality.get("statistics")
    if found is not None:
        yield "KL, mean", with_error(quality["kl"], found["kl_error"])
        yield from ((name, f"{found['kl_percentiles'][percent]:.4g}") for percent, name in KL_LINES.items())
        yield "same top token", _percent(quality["top1"], found["top1_error"])
        yield "Δp, mean", _percent(found["p_mean"], found["p_mean_error"])
        yield "Δp, RMS", _percent(found["p_rms"], found["p_rms_error"])
        yield from ((name, _percent(found["p_percentiles"][percent])) for percent, name in P_LINES.items())
        yield "perplexity", with_error(quality["perplexity"], found["perplexity_error"])
        yield "perplexity / full model's", with_error(found["ratio"], found["ratio_error"])
        correlation = found["correlation"]
        yield "correlation of surprises", "-" if correlation is None else f"{100 * correlation:.2f} %"


def of_full_model(quality: Quality) -> dict[str, str]:
    """What the same lines are of the full model itself."""
    found: Any = quality.get("statistics")
    plain = f"{quality['full_perplexity']:.4g}"
    error = None if found is None else found["full_perplexity_error"]
    return {
        "KL, mean, 95 %": "0", "same top token": "100 %",
        "perplexity": plain if error is None else with_error(quality["full_perplexity"], error),
    }  # fmt: skip


def with_error(value: float, error: float) -> str:
    """The value to two digits of its error, at least four of its own."""
    return f"{value:.4g} ± {error:.2g}"


def _percent(share: float, error: float | None = None) -> str:
    return f"{100 * share:.2f} %" if error is None else f"{100 * share:.2f} ± {100 * error:.2g} %"
