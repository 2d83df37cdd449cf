"""A package: the files that a runtime loads, with a manifest of what they are and what was promised of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from planner.plan import Plan
from planner.runtimes.base import Progress, Runtime
from records.atomic import new_folder, sha256
from records.reading import read_json

MANIFEST = "manifest.json"
KIND = "bitfleet package"
SCHEMA = 1
_REMAKE = "make it again with `bitfleet export plan.json --out DIR`"

KL_LIMIT = 0.01  # nats per token between the package and the subnet it was made from
MEMORY_TOLERANCE = 0.10
TPOT_TOLERANCE = 0.20
TTFT_TOLERANCE = 0.50  # a prompt is one pass, and one disturbance of the machine is all of it


@dataclass(frozen=True)
class Entry:
    """One file of a package."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Package:
    """An exported package. `files` are by name, without the manifest itself."""

    path: Path
    plan: Plan
    files: Mapping[str, Entry]
    versions: Mapping[str, str]
    date: str

    def check_files(self) -> None:
        """ValueError or FileNotFoundError naming the first file that is missing, or is not what was written."""
        for name, entry in self.files.items():
            path = self.path / name
            if not path.is_file():
                raise FileNotFoundError(f"the package {self.path} lacks {name}; {_REMAKE}")
            if path.stat().st_size != entry.bytes or sha256(path) != entry.sha256:
                raise ValueError(f"{path} is damaged: its SHA-256 is not the manifest's; {_REMAKE}")


def write_package(runtime: Runtime, files: Any, plan: Plan, out: Path, progress: Progress | None = None) -> Package:
    """Export the plan's subnet into the folder `out`, whole or not at all.

    An older package at `out` is replaced; any other folder with something in it is refused with ValueError, as is a
    plan that was made for other weights.
    """
    if plan.fingerprint != files.fingerprint:
        raise ValueError(f"the plan was made for weights that have changed since; plan {files.path} again")
    check_replaceable(out)
    with new_folder(out) as folder:
        runtime.write(files, plan.subnet, plan.workload, plan.device.get("threads"), folder, progress)
        entries = {path.name: Entry(sha256(path), path.stat().st_size) for path in sorted(folder.iterdir())}
        manifest = {
            "kind": KIND,
            "schema": SCHEMA,
            "launch": runtime.launch(out),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": runtime.versions(),
            "files": {name: asdict(entry) for name, entry in entries.items()},
            "plan": plan.to_json(),
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return open_package(out)


def check_replaceable(out: Path) -> None:
    """ValueError unless `out` is free, an empty folder or an older package."""
    if not out.exists() or (out.is_dir() and (not any(out.iterdir()) or _is_package(out))):
        return
    raise ValueError(f"a package is written to a new folder or over an older package, {out} is neither; give another")


def _is_package(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kind"] == KIND)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_package(path: Path) -> Package:
    """FileNotFoundError or ValueError, one line with the next step, for what is missing, corrupt or something else."""
    if not path.is_dir():
        raise FileNotFoundError(f"no package at {path}; {_REMAKE}")
    data = read_json(path / MANIFEST, "package manifest", _REMAKE)
    if data.get("kind") != KIND or data.get("schema") != SCHEMA:
        raise ValueError(f"{path / MANIFEST} is not a manifest of this version; {_REMAKE}")
    try:
        entries = {name: Entry(**entry) for name, entry in data["files"].items()}
        return Package(path, Plan.from_json(data["plan"]), entries, data["versions"], data["date"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged ({error}); {_REMAKE}") from None
