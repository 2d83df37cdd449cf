"""The one layer that every JSON file is read through; what is wrong is one line with field, rule, value and remedy.

A file is a regular one of at most 16 MB, UTF-8, nested at most 64 deep, with finite numbers that fit into 64 bits:
`read_json`. Its object becomes a dataclass when types are as annotated and no field is unknown or missing: `as_record`.
What fields must be to each other, and their ranges, a dataclass checks in its `__post_init__`, by `check` for one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from records.errors import InputError, MissingError

MAX_BYTES = 16 * 2**20  # the densest JSON takes 40 times its size in memory
MAX_DEPTH = 64
LARGEST = 2**63

Record = TypeVar("Record")


def read_record(path: Path, cls: type[Record], what: str, remedy: str) -> Record:
    """The `cls` in `path`, by its `from_json` where it has one. MissingError or InputError name file and field."""
    data = read_json(path, what, remedy)
    try:
        read: Callable[[Any], Any] = getattr(cls, "from_json", None) or (lambda value: as_record(cls, value, what))
        return read(data)
    except InputError as error:
        raise InputError(f"{path}: {error}; {remedy}") from None


def read_json(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The object in `path`. MissingError or InputError name `what` it should be and the `remedy`."""
    data = read_value(path, what, remedy)
    if not isinstance(data, dict):
        raise InputError(f"{_a(what)} is a JSON object, {path} holds a {type(data).__name__}; {remedy}")
    return data


def read_value(path: Path, what: str, remedy: str) -> Any:
    """Any JSON value in `path`, such as the array that another program wrote; errors as those of `read_json`."""
    if not path.is_file():
        raise MissingError(f"no {what} at {path}; {remedy}")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{_a(what)} has at most {MAX_BYTES} bytes, {path} has {size}; {remedy}")
        raw = path.read_bytes()
    except PermissionError:
        raise InputError(f"{path} may not be read by this user; give it the right to, or {remedy}") from None
    try:
        return parse_json(raw)
    except InputError as error:
        raise InputError(f"{path} is not JSON that is read here ({error}), so no {what}; {remedy}") from None


def _a(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


def parse_json(raw: bytes | str) -> Any:
    """Any JSON value within the limits of this module; InputError says what is wrong."""
    import msgspec

    try:
        data = msgspec.json.decode(raw)
    except RecursionError:
        raise InputError(f"nested deeper than {MAX_DEPTH}") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InputError(str(error)) from None
    _check_values(data)
    return data


def _check_values(data: Any) -> None:
    level = [data]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, int) and not -LARGEST <= value < LARGEST:
                raise InputError(f"numbers fit into 64 bits, got {str(value)[:20]}...")
        if not inner:
            return
        level = inner
    raise InputError(f"nested deeper than {MAX_DEPTH}")


def read_foreign(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's, {} where there is none. A byte order mark, and numbers of any size, are
    theirs to write. InputError where it holds anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise InputError(f"{path} is damaged: it is not JSON; copy it again") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} is damaged: it must hold a JSON object, not a {type(data).__name__}; copy it again")
    return data


def as_record(cls: Any, data: Any, what: str) -> Any:
    """`data` as a `cls`, a dataclass or any other annotation; InputError names the field that is not as annotated.

    A dataclass within that has a `from_json` is read by it.
    """
    import msgspec

    try:
        return msgspec.convert(_prepared(_type_info(cls), data, "", what), cls)
    except msgspec.ValidationError as error:
        raise InputError(_words(str(error), data, what)) from None


@cache
def _type_info(cls: Any) -> Any:
    import msgspec

    return msgspec.inspect.type_info(cls)


def _prepared(info: Any, value: Any, path: str, what: str) -> Any:
    """`value` with what has a reader of its own read, once no object in it has an unknown field or lacks one."""
    kind = type(info).__name__
    if kind == "UnionType":
        some = [member for member in info.types if type(member).__name__ != "NoneType"]
        return value if value is None or len(some) != 1 else _prepared(some[0], value, path, what)
    if kind == "DataclassType" and path and hasattr(info.cls, "from_json"):
        try:
            return info.cls.from_json(value)
        except ValueError as error:
            raise InputError(f"{_at(path, what)}: {error}") from None
    if kind in ("DataclassType", "TypedDictType") and isinstance(value, dict):
        known = {field.name: field.type for field in info.fields}
        _check_names(info, value, _at(path, what))
        return {n: _prepared(known[n], v, _join(path, n), what) if n in known else v for n, v in value.items()}
    if kind == "DictType" and isinstance(value, dict):
        return {name: _prepared(info.value_type, v, _join(path, name), what) for name, v in value.items()}
    if kind in ("ListType", "VarTupleType") and isinstance(value, (list, tuple)):
        return [_prepared(info.item_type, v, f"{path}[{index}]", what) for index, v in enumerate(value)]
    return value


def _check_names(info: Any, value: dict[str, Any], place: str) -> None:
    names = {field.name for field in info.fields}
    unknown = [] if type(info).__name__ == "TypedDictType" else sorted(value.keys() - names)
    if unknown:
        raise InputError(f"{place} has no field {_listed(unknown)}")
    missing = [field.name for field in info.fields if field.required and field.name not in value]
    if missing:
        raise InputError(f"{place} needs the field {_listed(missing)}")


def _listed(names: list[str]) -> str:
    return ", ".join(f"{name!r:.80}" for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _at(path: str, what: str) -> str:
    return f"{path:.200} of {what}" if path else what


_WORDS = {"int": "an integer", "float": "a number", "str": "text", "bool": "true or false", "array": "a list"}
_WORDS |= {"object": "an object"}


def _words(message: str, data: Any, what: str) -> str:
    """msgspec's message in the words of this project: the field, the rule, what was found."""
    message, _, path = message.partition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    if found := re.fullmatch(r"Expected `(.+)`, got `(.+)`", message):
        wanted = " or ".join(_WORDS.get(name, name) for name in found[1].split(" | "))
        value = _value_at(data, path)
        got = _WORDS.get(found[2], found[2]) if isinstance(value, (dict, list)) else f"{value!r:.80}"
        return f"{_at(path, what)} must be {wanted}, got {got}"
    return f"{_at(path, what)}: {message}" if path else message


def _value_at(data: Any, path: str) -> Any:
    """What lies at msgspec's path; the containing object where a key is not told ("[...]")."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path.replace("[...]", "")):
        try:
            data = data[int(index)] if index else data[name]
        except (KeyError, IndexError, TypeError):
            break
    return data


def check(
    name: str,
    value: Any,
    kind: type[int] | type[float] | type[str],
    *,
    optional: bool = False,
    least: float | None = None,
    above: bool = False,
) -> None:
    """InputError unless `value` is a `kind` (float takes integers, str must not be empty) of at least `least`."""
    if value is None and optional:
        return
    words = {int: "an integer", float: "a number", str: "text"}[kind]
    allowed = (int, float) if kind is float else (kind,)
    if isinstance(value, bool) or not isinstance(value, allowed) or value == "":
        raise InputError(f"{name} must be {words}{' or null' if optional else ''}, got {value!r:.80}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be finite, got {value!r}")
    if least is not None and not isinstance(value, str) and (value < least or (above and value == least)):
        raise InputError(f"{name} must be {'above' if above else 'at least'} {least}, got {value!r}")
