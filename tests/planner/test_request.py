from __future__ import annotations

import pytest

from planner.request import Budget, Workload, parse_bytes, parse_duration, time_limit
from supernet.spec import ModelSpec

SPEC = ModelSpec("tiny", "LlamaForCausalLM", 1, 64, 2, 1, 32, 100, 2048, True, 0, ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * 10**9),
        ("8GiB", 8 * 2**30),
        ("8192MB", 8192 * 10**6),
        ("0.5 GB", 5 * 10**8),
        (" 1.5gib ", 3 * 2**29),
        ("143.2MB", 143_200_000),
        ("512kib", 2**19),
        ("1TB", 10**12),
        ("64B", 64),
        (".5mb", 500_000),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "8", "8G", "GB", "8 gigs", "-8GB", "1e3MB", "8,5GB", "0GB", "0.1B", "٨GB"])
def test_any_other_size_says_what_is_accepted(text: str) -> None:
    with pytest.raises(ValueError, match=r"8GB, 8GiB, 8192MB or 0\.5 GB.*got"):
        parse_bytes(text)


@pytest.mark.parametrize(("text", "expected"), [("20ms", 20.0), ("0.5s", 500.0), ("1.25 MS", 1.25), ("2 S", 2000.0)])
def test_durations(text: str, expected: float) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "20", "20us", "0ms", "-1s", "fast", "1m"])
def test_any_other_duration_says_what_is_accepted(text: str) -> None:
    with pytest.raises(ValueError, match=r"20ms or 0\.5s.*got"):
        parse_duration(text)


def test_a_rate_is_a_time_per_token() -> None:
    assert time_limit(None, 20) == time_limit(50.0, 20) == time_limit(50.0, None) == 50.0
    assert time_limit(None, None) is None
    with pytest.raises(ValueError, match=r"--target-tps 20 is 50 ms a token, --latency says 20 ms; give one of them"):
        time_limit(20.0, 20)


@pytest.mark.parametrize("rate", [0.0, -1.0, 0.0009, 1e9, float("nan"), float("inf")])
def test_a_rate_that_cannot_be_is_refused_by_its_rule(rate: float) -> None:
    with pytest.raises(ValueError, match="^--target-tps is 0.001 to 1,000,000 tokens a second, such as 20, got "):
        time_limit(None, rate)
    assert (time_limit(None, 0.001), time_limit(None, 1e6)) == (1e6, 1e-3)


def test_a_workload_fills_in_what_was_not_asked() -> None:
    assert Workload.for_model(SPEC) == Workload(context=2048, batch=1, prompt_tokens=128)
    assert Workload.for_model(SPEC, context=64) == Workload(context=64, batch=1, prompt_tokens=32)


def test_a_context_beyond_the_model_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"at most the 2048 tokens of tiny, got 4096; use --context 2048"):
        Workload.for_model(SPEC, context=4096)


@pytest.mark.parametrize(
    "values",
    [{"context": 0}, {"context": 8, "batch": 0}, {"context": 8, "prompt_tokens": 8}, {"context": 8, "batch": 10**9}],
)
def test_a_workload_that_cannot_be_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="got"):
        Workload(**values)


def test_a_context_of_zero_is_not_taken_for_the_default() -> None:
    with pytest.raises(ValueError, match="context must be at least 1, got 0"):
        Workload.for_model(SPEC, context=0)
    with pytest.raises(ValueError, match="context must be at least 2, a prompt's token and an answer's, got 1"):
        Workload(1, prompt_tokens=1)


@pytest.mark.parametrize("values", [{"memory_bytes": 0}, {"memory_bytes": 1, "tpot_ms": -1.0}])
def test_a_budget_is_above_zero(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above zero, got"):
        Budget(**values)  # type: ignore[arg-type]


def test_round_trips() -> None:
    workload, budget = Workload(512, 2, 100), Budget(10**9, 20.0, None, 10**8)
    assert Workload.from_json(workload.to_json()) == workload
    assert Budget.from_json(budget.to_json()) == budget
