"""The layer that every JSON file is read through: limits of any file, one line for what is not as annotated."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import pytest

from records.errors import InputError, MissingError
from records.reading import MAX_BYTES, MAX_DEPTH, as_record, parse_json, read_json, read_record


class Row(TypedDict):
    name: str
    ms: float


@dataclass(frozen=True)
class Inner:
    level: int

    def __post_init__(self) -> None:
        if self.level < 1:
            raise InputError(f"level must be at least 1, got {self.level}")


@dataclass(frozen=True)
class Written:
    """Read by a reader of its own: JSON has its text alone."""

    text: str

    @classmethod
    def from_json(cls, data: Any) -> Written:
        if data != "right":
            raise InputError(f"write right, got {data!r}")
        return cls(data)


@dataclass(frozen=True)
class Outer:
    number: float
    inner: tuple[Inner, ...] = ()
    rows: tuple[Row, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    maybe: int | None = None
    written: Written | None = None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "it needs the field 'number'"),
        ({"number": 1, "b": 1, "a": 1}, "it has no field 'a', 'b'"),
        ({"number": True}, "number of it must be a number, got True"),
        ({"number": "1"}, "number of it must be a number, got '1'"),
        ({"number": 1, "maybe": 1.5}, "maybe of it must be an integer or null, got 1.5"),
        ({"number": 1, "inner": {}}, "inner of it must be a list, got an object"),
        ({"number": 1, "inner": [{"level": 1}, {}]}, "inner[1] of it needs the field 'level'"),
        ({"number": 1, "inner": [{"level": 1, "x": 1}]}, "inner[0] of it has no field 'x'"),
        ({"number": 1, "inner": [{"level": 0}]}, "inner[0] of it: level must be at least 1, got 0"),
        ({"number": 1, "inner": [{"level": []}]}, "inner[0].level of it must be an integer, got a list"),
        ({"number": 1, "rows": [{"name": "a"}]}, "rows[0] of it needs the field 'ms'"),
        ({"number": 1, "rows": [3]}, "rows[0] of it must be an object, got 3"),
        ({"number": 1, "texts": {"a": 1}}, "texts[...] of it must be text, got an integer"),
        ({"number": 1, "written": "wrong"}, "written of it: write right, got 'wrong'"),
        ([], "it must be an object, got a list"),
    ],
)
def test_what_is_not_as_annotated_is_named(data: Any, message: str) -> None:
    with pytest.raises(InputError) as raised:
        as_record(Outer, data, "it")
    assert str(raised.value) == message


def test_what_is_as_annotated_is_read() -> None:
    rows = [{"name": "a", "ms": 1, "later": 2}]
    found = as_record(Outer, {"number": 1, "inner": [{"level": 2}], "rows": rows, "written": "right"}, "it")
    assert found == Outer(1.0, (Inner(2),), ({"name": "a", "ms": 1.0},), written=Written("right"))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b'{"a": 1} x', "trailing"),
        (b"NaN", "invalid character"),
        (b"-Infinity", "invalid"),
        (b"1e999", "out of range"),
        (b"9" * 30, "fit into 64 bits"),
        (b"9" * 6000, "out of range"),
        (b'{"a": ' * 100_000, f"nested deeper than {MAX_DEPTH}"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH}"),
        (b'"\xff"', "utf-8"),
        ("{}".encode("utf-16"), "invalid character"),
    ],
)
def test_json_beyond_the_limits_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_json(raw)


def test_json_at_the_limits_is_read() -> None:
    assert parse_json(b"[" * (MAX_DEPTH - 1) + b"9223372036854775807" + b"]" * (MAX_DEPTH - 1))


def test_files_that_are_none_are_said_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "none", "."):
        with pytest.raises(MissingError, match="no thing at .*; make one"):
            read_json(tmp_path / name, "thing", "make one")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(InputError, match=f"at most {MAX_BYTES} bytes"):
        read_json(tmp_path / "large", "thing", "make one")


def test_errors_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"number": null}')
    with pytest.raises(InputError) as raised:
        read_record(tmp_path / "a", Outer, "thing", "make one")
    assert str(raised.value) == f"{tmp_path / 'a'}: number of thing must be a number, got None; make one"
