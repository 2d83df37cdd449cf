"""JSON files that are written whole or not at all, and read with one line that says what is wrong and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from supernet.files import write_text


def write_json(path: Path, value: Any) -> None:
    """Keys keep their order; numbers that JSON has not are refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The object in `path`. FileNotFoundError or ValueError name `what` it should be and the `remedy`."""
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}; {remedy}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # also text that is not UTF-8
        raise ValueError(f"{path} is not JSON, so not a {what}; {remedy}") from None
    if not isinstance(data, dict):
        raise ValueError(f"a {what} is a JSON object, {path} holds a {type(data).__name__}; {remedy}")
    return data
