"""Checks of fields that come from files: one line that names the field, the rule and the value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any


def check(
    name: str,
    value: Any,
    kind: type[int] | type[float] | type[str],
    *,
    optional: bool = False,
    least: float | None = None,
    above: bool = False,
) -> None:
    """ValueError unless `value` is a `kind` (float takes integers, str must not be empty) of at least `least`."""
    if value is None and optional:
        return
    words = {int: "an integer", float: "a number", str: "text"}[kind]
    allowed = (int, float) if kind is float else (kind,)
    if isinstance(value, bool) or not isinstance(value, allowed) or value == "":
        raise ValueError(f"{name} must be {words}{' or null' if optional else ''}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    if least is not None and not isinstance(value, str) and (value < least or (above and value == least)):
        raise ValueError(f"{name} must be {'above' if above else 'at least'} {least}, got {value!r}")


def check_fields(cls: Any, what: str, data: Any) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be an object, got {type(data).__name__}")
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{what} has no field {', '.join(map(repr, unknown))}")
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in data]
    if missing:
        raise ValueError(f"{what} needs the field {', '.join(map(repr, missing))}")


def read_members(cls: Any, name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list, got {type(values).__name__}")
    for index, value in enumerate(values):
        check_fields(cls, f"{name}[{index}]", value)
    return tuple(cls(**value) for value in values)


def read_texts(name: str, values: Any) -> dict[str, str]:
    if not isinstance(values, Mapping) or not all(isinstance(text, str) for text in values.values()):
        raise ValueError(f"{name} must be an object of name: text, got {values!r}")
    return dict(values)
