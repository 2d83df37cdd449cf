"""The table of what tasks came to; without lm-eval, as numbers are all that it takes."""

from __future__ import annotations

import pytest

from commands.tasks import FULL, print_scores
from planner.tasks.scores import Score

ALIKE = "where all examples of a value are alike, they leave its error unknown"


@pytest.mark.parametrize(
    ("error", "said", "more"), [(0.0, "0, all alike", [ALIKE]), (0.2, "0 ± 0.2", []), (None, "0", [])]
)
def test_an_error_of_exactly_zero_is_none(
    capsys: pytest.CaptureFixture[str], error: float | None, said: str, more: list[str]
) -> None:
    print_scores({FULL: [Score("words", "acc", 0.0, error, 6)]})
    header, row, note, *others = capsys.readouterr().out.splitlines()
    assert row[header.index("VALUE") : header.index("OF THE")].strip() == said
    assert note.startswith("± of a value is one standard error") and others == more
