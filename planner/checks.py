"""A row of `bitfleet doctor`: what works on this machine and what does not, with its fix."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"


@dataclass(frozen=True)
class Check:
    name: str
    status: str  # PASS, WARN or FAIL
    detail: str
    fix: str | None = None  # the command or the act that turns the row to PASS

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def in_a_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]
