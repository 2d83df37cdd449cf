"""TOML: what tomllib says, and the line of every key."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from records.errors import InputError, MissingError
from records.toml import MAX_BYTES, lines_of, read_toml

TEXT = '''# a comment with "quotes" and [brackets]
title = "a # no comment" # one
"quoted.key" = 1
'literal' = 'C:\\path'
a.b . "c d" = 1.5
when = 1979-05-27 07:32:00Z
long = """
[not.a.table]
x = 1 """
raw = \'\'\'
y = "2
\'\'\'
numbers = [
  1, # first
  [2, 3],
  { x = 1, y.z = [4] },
]
[table] # with a comment
key = { one = 1, "two" = "}" }
[table.inner]
deep = true
[[device]]
name = "a"
[device.more]
x = 1
[[device]]
name = "b"
[[device.parts]]
[[device.parts]]
n = 1
'''


def places(value: Any, at: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {at} - {()} | {place for key, member in inner for place in places(member, (*at, key))}


def test_every_key_has_its_line() -> None:
    lines = lines_of(TEXT)
    assert lines.keys() == places(tomllib.loads(TEXT))
    for place, text in {
        ("quoted.key",): '"quoted.key" = 1', ("a", "b", "c d"): 'a.b . "c d"', ("raw",): "raw = '''",
        ("numbers", 1, 0): "  [2, 3]", ("numbers", 2, "y", "z", 0): "  { x = 1", ("table", "key", "two"): "key = {",
        ("device", 0, "more", "x"): "x = 1", ("device", 1, "name"): 'name = "b"', ("device", 1, "parts", 1, "n"): "n =",
    }.items():  # fmt: skip
        assert TEXT.split("\n")[lines[place] - 1].startswith(text), place


KEYS = st.text("ab-_1", min_size=1, max_size=3) | st.sampled_from(['"x y"', '"a.b"', "'q'", '"\\u00e9"', '"="', '"]"'])
SCALARS = st.sampled_from(
    ["1", "1.5", "-0x1F", "true", "07:32:00", "1979-05-27", '"]"', "'{'", '"""a\n"b"\\\n """', "'''\n''x'''", '"\\"#"']
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda v: "[\n" + ", # c ]\n".join(v) + "\n]")
        | st.lists(st.tuples(KEYS, inner.filter(lambda v: "\n" not in v)), max_size=3).map(
            lambda v: "{" + ", ".join(f"{k} = {x}" for k, x in v) + "}"
        )
    ),
    max_leaves=6,
)
PAIRS = st.tuples(st.lists(KEYS, min_size=1, max_size=3), VALUES).map(lambda kv: f"{' . '.join(kv[0])}= {kv[1]} # c\n")
HEADERS = st.tuples(st.lists(KEYS, min_size=1, max_size=2), st.booleans()).map(
    lambda made: f"[[ {'.'.join(made[0])} ]]\n" if made[1] else f"[{'.'.join(made[0])}]\n\n"
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PAIRS | HEADERS, max_size=8))
def test_the_keys_found_are_those_of_tomllib(parts: list[str]) -> None:
    text = ""
    for part in parts:  # what would make it invalid is left out: a key twice, a table in a value
        try:
            tomllib.loads(text + part)
        except tomllib.TOMLDecodeError:
            continue
        text += part
    assert lines_of(text).keys() == places(tomllib.loads(text))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = 1\nb = \n", r"f\.toml:2: no TOML: Invalid value"),
        (b"a = 1\r\nb = \r\n", r"f\.toml:2: no TOML: Invalid value"),
        (b"a = 1\na = 2\n", r"f\.toml:2: no TOML: Cannot overwrite"),
        (b'a = """\n\n', r"f\.toml:3: no TOML"),
        (b"a = " + b"9" * 5000, "no TOML"),
        (b"a = " + b"[" * 100_000, "nested too deep|no TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"#" * (MAX_BYTES + 1), f"at most {MAX_BYTES} bytes"),
    ],
    ids=range(8),
)
def test_what_is_no_toml_is_one_line_with_its_place(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "f.toml").write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        read_toml(tmp_path / "f.toml", "fleet", "mend it")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("mend it")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no fleet at .*f\.toml; make it"):
        read_toml(tmp_path / "f.toml", "fleet", "make it")


def test_a_place_without_a_line_has_that_of_what_is_around_it(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text("\n[a]\nb = 1\n")
    read = read_toml(tmp_path / "f.toml", "fleet", "")
    assert [read.at(*place).rpartition(":")[2] for place in ((), ("a", "c"), ("a", "b", 7))] == ["1", "2", "3"]
