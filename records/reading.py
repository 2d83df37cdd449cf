"""Reads what is on disk with one line that names the field, the rule, the value and what to do.

`read_json` reads an object; the checks are for the fields that become a dataclass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from records.errors import InputError, MissingError


def read_json(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The object in `path`. MissingError or InputError name `what` it should be and the `remedy`."""
    if not path.is_file():
        raise MissingError(f"no {what} at {path}; {remedy}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # also text that is not UTF-8
        raise InputError(f"{path} is not JSON, so not a {what}; {remedy}") from None
    if not isinstance(data, dict):
        raise InputError(f"a {what} is a JSON object, {path} holds a {type(data).__name__}; {remedy}")
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
        raise InputError(f"{name} must be {words}{' or null' if optional else ''}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be finite, got {value!r}")
    if least is not None and not isinstance(value, str) and (value < least or (above and value == least)):
        raise InputError(f"{name} must be {'above' if above else 'at least'} {least}, got {value!r}")


def check_fields(cls: Any, what: str, data: Any) -> None:
    if not isinstance(data, Mapping):
        raise InputError(f"{what} must be an object, got {type(data).__name__}")
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise InputError(f"{what} has no field {', '.join(map(repr, unknown))}")
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in data]
    if missing:
        raise InputError(f"{what} needs the field {', '.join(map(repr, missing))}")


def read_members(cls: Any, name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list):
        raise InputError(f"{name} must be a list, got {type(values).__name__}")
    for index, value in enumerate(values):
        check_fields(cls, f"{name}[{index}]", value)
    return tuple(cls(**value) for value in values)


def read_texts(name: str, values: Any) -> dict[str, str]:
    if not isinstance(values, Mapping) or not all(isinstance(text, str) for text in values.values()):
        raise InputError(f"{name} must be an object of name: text, got {values!r}")
    return dict(values)
