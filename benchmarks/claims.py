"""What every benchmark prints: a table, and as its last line one JSON object with its claims."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "onnxruntime", "onnxruntime-genai", "optuna", "scipy")


@dataclass(frozen=True)
class Claim:
    """`value` must be at most `target`."""

    claim: str
    value: float
    target: float

    @property
    def holds(self) -> bool:
        return self.value <= self.target


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        print(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
    print()


def finish(script: str, claims: Sequence[Claim], **evidence: Any) -> None:
    """Print the verdicts and the JSON line, then leave with 1 where a claim does not hold."""
    for claim in claims:
        mark = "holds" if claim.holds else "FAILS"
        print(f"{mark}: {claim.claim}: {claim.value:.4g} (target: at most {claim.target:.4g})")
    record = {
        "script": Path(script).name,
        "command": "python benchmarks/" + " ".join([Path(script).name, *map(_plain, sys.argv[1:])]),
        "versions": versions(PACKAGES),
        "device": _device(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "claims": [{**asdict(claim), "holds": claim.holds} for claim in claims],
        **evidence,
    }
    print(json.dumps(record))
    sys.exit(0 if all(claim.holds for claim in claims) else 1)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of the packages, those that are not installed left out, and of Python."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}


def _plain(argument: str) -> str:
    """Absolute paths are of one machine: their last part says enough."""
    return Path(argument).name if argument.startswith("/") else argument


def _device() -> str:
    from profiles.detect import detect

    device, _ = detect("cpu", measure_bandwidth=False)
    return f"{device.model}, {device.threads} threads"
