"""What is said of a budget that nothing meets: by however little it is short, following it is enough."""

from __future__ import annotations

import re

import pytest

from planner.request import Budget, parse_bytes, parse_duration
from planner.search.base import Problem, Resource
from planner.shortage import budget_error
from supernet.space import Choice, SearchSpace

NARROW, WIDE = Choice(2, 64, "sym"), Choice(8, 32, "sym")


def short_of(amount: float, limit: float, unit: str) -> tuple[str, str, str]:
    """What is said to be asked, needed and advised where the smallest subnet takes `amount`."""
    table = {"a": {NARROW: amount, WIDE: 2 * amount}}
    name = "memory" if unit == "bytes" else "tpot"
    resource = Resource(name, unit, limit, 0.0, table)
    problem = Problem(SearchSpace.of({"a": (NARROW, WIDE)}), {"a": {NARROW: 1.0, WIDE: 0.0}}, (resource,))
    said = str(budget_error(problem, Budget(10**18), "box"))
    found = re.fullmatch(r"[a-z ]+ of ([\d.]+ \w+)(?: \(.*?\))? cannot .* needs ([\d.]+ \w+) .*; use --\w+ (\S+)", said)
    assert found is not None, said
    return found[1], found[2], found[3]


@pytest.mark.parametrize("amount", [34_099_934, 100_000_000, 999_999_999, 10**9 + 1, 1_234, 9])
@pytest.mark.parametrize("by", [1, 4_000])
def test_bytes(amount: int, by: int) -> None:
    limit = max(1, amount - by)
    asked, needed, use = short_of(amount, limit, "bytes")
    assert parse_bytes(asked) <= limit < amount <= parse_bytes(needed) == parse_bytes(use)


@pytest.mark.parametrize(("amount", "limit"), [(0.0819, 0.0818), (5.60001, 5.6), (20.0, 19.9999), (1234.5, 1234.4)])
def test_times(amount: float, limit: float) -> None:
    asked, needed, use = short_of(amount, limit, "ms")
    assert parse_duration(asked) <= limit < amount <= parse_duration(needed) == parse_duration(use)


@pytest.mark.parametrize("limit", ["180MB", "1GB", "34.1MB", "90.2KB"])
def test_a_limit_is_said_as_it_was_given(limit: str) -> None:
    asked, _, _ = short_of(2 * parse_bytes(limit), parse_bytes(limit), "bytes")
    assert asked.replace(" ", "") == limit
