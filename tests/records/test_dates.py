"""Dates in files, and the one that a build may be given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from records.dates import made_now
from records.errors import InputError


def test_a_date_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert abs(datetime.fromisoformat(made_now()) - datetime.now(UTC)) < timedelta(seconds=5)


def test_a_date_is_what_the_build_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert made_now() == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize("said", ["", "today", "1e9", "9" * 30])
def test_another_date_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", said)
    with pytest.raises(InputError, match="seconds since 1970"):
        made_now()
