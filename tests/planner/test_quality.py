from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from planner.quality import MeasuredQuality, measured_on, over_texts
from records.errors import InputError
from supernet.sensitivity_table import SensitivityTable
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


TEXTS = {"held-out": "t1", "manual": "t2"}  # digests by name
OTHER = SUBNET.replace("a", Choice(4, 32))
KL = {"held-out": 0.5, "manual": 1.0}


class Measures:
    """Measures, and remembers what it was asked."""

    def __init__(self, fails_on: Subnet | None = None) -> None:
        self.asked: list[tuple[Subnet, str]] = []
        self.fails_on = fails_on

    def __call__(self, subnets: Sequence[Subnet], texts: Sequence[str]) -> list[dict[str, Quality]]:
        if self.fails_on in subnets:
            raise KeyboardInterrupt
        self.asked += [(subnet, text) for subnet in subnets for text in texts]
        return [{text: Quality(KL[text], 60.0, 0.7, 4096) for text in texts} for _ in subnets]


def test_a_subnet_is_measured_on_every_text_and_ranked_by_the_mean(tmp_path: Path) -> None:
    measure = Measures()
    quality = MeasuredQuality(tmp_path / "evaluations.json", "f1", TEXTS, measure)
    (first, *rest) = quality([SUBNET, OTHER, SUBNET])
    assert first["kl"] == 0.75
    assert first["texts"]["manual"] == {"kl": 1.0, "perplexity": 60.0, "top1": 0.7, "tokens": 4096}
    assert rest == [first, first]
    assert measure.asked == [(s, text) for s in (SUBNET, OTHER) for text in TEXTS]
    assert quality.measured == 2


def test_a_subnet_is_measured_once_for_each_text_and_supernet(tmp_path: Path) -> None:
    path, measure = tmp_path / "evaluations.json", Measures()
    MeasuredQuality(path, "f1", TEXTS, measure)([SUBNET, OTHER])
    measure.asked.clear()
    MeasuredQuality(path, "f1", TEXTS, measure)([OTHER, SUBNET])
    assert measure.asked == []
    MeasuredQuality(path, "f1", {"held-out": "t1", "manual": "t3"}, measure)([SUBNET])  # of that name, another text
    assert measure.asked == [(SUBNET, "manual")]
    MeasuredQuality(path, "f2", {"held-out": "t1"}, measure)([SUBNET])
    assert measure.asked[1:] == [(SUBNET, "held-out")]


def test_what_was_measured_before_an_interruption_is_kept(tmp_path: Path) -> None:
    path, measure = tmp_path / "evaluations.json", Measures(fails_on=OTHER)
    MeasuredQuality(path, "f", TEXTS, measure)([SUBNET])
    with pytest.raises(KeyboardInterrupt):
        MeasuredQuality(path, "f", TEXTS, measure)([SUBNET, OTHER])
    assert {key: list(kept) for key, kept in json.loads(path.read_text()).items()} == {
        "f/2/t1": [SUBNET.digest],
        "f/2/t2": [SUBNET.digest],
    }
    assert MeasuredQuality(path, "f", TEXTS, measure)([SUBNET])[0]["texts"]["manual"]["tokens"] == 4096


def test_what_was_measured_on_is_said_with_its_interval() -> None:
    one = {"kl": 0.26, "kl_interval": 0.031, "windows": 4, "tokens": 1020, "text": "prose.txt"}
    two = {"kl": 0.5, "windows": 1, "tokens": 255, "text": "Python manual"}
    (line,) = measured_on(over_texts({"held-out": one, "Python manual": two}))
    assert line == (
        "measured with 95 % intervals on held-out (prose.txt), 4 windows, 1020 tokens: KL 0.26 ± 0.031, "
        "Python manual, 1 windows, 255 tokens: KL 0.5; subnets are ranked by the mean"
    )
    assert list(measured_on({"kl": 0.3})) == []
    (line,) = replace(TABLE, text={"source": "a.txt", "windows": 4, "tokens": 1024}).notes()
    assert line == "predicted from sensitivities on 4 windows, 1024 tokens, of what was trained on: a.txt"
    assert list(TABLE.notes()) == []


def test_a_corrupt_cache_says_to_delete_it(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.json"
    for text in ("{", '{"f/t": 3}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"evaluations\.json.*delete"):
            MeasuredQuality(path, "f", TEXTS, Measures())([SUBNET])
