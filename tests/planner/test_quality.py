from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from planner.quality import MeasuredQuality, SensitivityTable
from supernet.space import Choice, SearchSpace, Subnet

SPACE = SearchSpace.of({"a": (Choice(2, 32), Choice(4, 32)), "b": (Choice(4, 32),)})
TABLE = SensitivityTable("full", {"a": {"int2g32": 0.5, "int4g32": 0.125}, "b": {"int4g32": 0.25}}, supernet="f1")
SUBNET = Subnet.of({"a": Choice(2, 32), "b": Choice(4, 32)})


@dataclass(frozen=True)
class Quality:
    kl: float
    perplexity: float
    top1: float
    tokens: int


def test_losses_add() -> None:
    assert TABLE.predict(SUBNET) == 0.75


def test_a_table_round_trips_through_its_file(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "sensitivity.json")
    assert SensitivityTable.load(tmp_path / "sensitivity.json") == TABLE
    assert [p.name for p in tmp_path.iterdir()] == ["sensitivity.json"]


def test_a_table_that_misses_choices_of_the_space_says_which() -> None:
    TABLE.check(SPACE, "f1")
    wider = SearchSpace.of({"a": (Choice(2, 32), Choice(8, 32)), "c": (Choice(4, 32),)})
    with pytest.raises(ValueError, match=r"none for a at int8g32 and 1 more; copy the supernet"):
        TABLE.check(wider)


def test_a_table_of_other_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="weights that have changed since"):
        TABLE.check(SPACE, "f2")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"units": {}}', '{"base": "full", "units": []}', '{"base": "full", "units": {"a": {"x": 1}}}',
     '{"base": "full", "units": {"a": {"int2g32": NaN}}}', '{"base": "full", "units": {"a": {"int2g32": "0.1"}}}'],
)  # fmt: skip
def test_a_corrupt_table_is_one_line_with_the_next_step(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sensitivity.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"sensitivity\.json.*copy the supernet") as raised:
        SensitivityTable.load(path)
    assert "\n" not in str(raised.value)


def test_a_missing_table_is_one_line_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no sensitivity table at .*; copy the supernet"):
        SensitivityTable.load(tmp_path / "sensitivity.json")


def test_a_subnet_is_measured_once_for_each_text_and_supernet(tmp_path: Path) -> None:
    asked: list[Subnet] = []

    def measure(subnets: Sequence[Subnet]) -> list[Quality]:
        asked.extend(subnets)
        return [Quality(0.5, 60.0, 0.7, 4096) for _ in subnets]

    path = tmp_path / "evaluations.json"
    other = SUBNET.replace("a", Choice(4, 32))
    first = MeasuredQuality(path, "f1", "text1", measure)
    assert first([SUBNET, other, SUBNET]) == [{"kl": 0.5, "perplexity": 60.0, "top1": 0.7, "tokens": 4096}] * 3
    assert asked == [SUBNET, other]
    assert MeasuredQuality(path, "f1", "text1", measure)([SUBNET])[0]["kl"] == 0.5
    assert len(asked) == 2
    MeasuredQuality(path, "f1", "text2", measure)([SUBNET])
    MeasuredQuality(path, "f2", "text1", measure)([SUBNET])
    assert len(asked) == 4


def test_what_was_measured_before_an_interruption_is_kept(tmp_path: Path) -> None:
    def measure(subnets: Sequence[Subnet]) -> list[Quality]:
        if subnets[0] != SUBNET:
            raise KeyboardInterrupt
        return [Quality(0.5, 60.0, 0.7, 4096)]

    path = tmp_path / "evaluations.json"
    MeasuredQuality(path, "f", "t", measure)([SUBNET])
    with pytest.raises(KeyboardInterrupt):
        MeasuredQuality(path, "f", "t", measure)([SUBNET, SUBNET.replace("a", Choice(4, 32))])
    assert list(json.loads(path.read_text())["f/t"]) == [SUBNET.digest]
    assert MeasuredQuality(path, "f", "t", measure)([SUBNET])[0]["tokens"] == 4096


def test_a_corrupt_cache_says_to_delete_it(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.json"
    for text in ("{", '{"f/t": 3}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"evaluations\.json.*delete"):
            MeasuredQuality(path, "f", "t", lambda subnets: [])([SUBNET])
