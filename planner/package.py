"""A package: the files that a runtime loads, with a manifest of what they are and what was promised of them."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from planner.plan import SHA256, Plan
from planner.probes import write_probes
from planner.promise import Promise
from planner.proof import PROOF, write_proof
from planner.runtimes.base import Progress, Runtime
from planner.runtimes.source import PackageSource
from records.atomic import new_folder, sha256, write_json
from records.dates import made_now
from records.errors import InputError, MissingError
from records.lock import locked
from records.reading import as_record, check, read_json

MANIFEST = "manifest.json"
KIND = "bitfleet package"
SCHEMA = 1
_REMAKE = "make it again with `bitfleet export plan.json --out DIR`"

MOST_TIMED, MOST_PRODUCTS = 4, 2**28  # kernels that `verify` times again, and what one multiplies: seconds at most
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """One file of a package."""

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        check("bytes", self.bytes, int, least=0)
        check("sha256", self.sha256, str)
        if not SHA256.fullmatch(self.sha256):
            raise InputError(f"sha256 must be 64 hexadecimal digits, got {self.sha256!r:.80}")


@dataclass(frozen=True)
class Package:
    """An exported package. `files` are by name, without the manifest itself."""

    path: Path
    plan: Plan
    files: Mapping[str, Entry]
    versions: Mapping[str, str]
    date: str
    promises: Mapping[str, Promise] = field(default_factory=dict)  # of other devices than the plan's, by name

    @property
    def devices(self) -> tuple[str, ...]:
        """The names of those that the package is for, the plan's first."""
        return (self.plan.device["name"], *self.promises)

    def promised_to(self, device: str) -> Package:
        """The same package with the plan of one of its `devices`."""
        if device == self.plan.device["name"]:
            return self
        if device not in self.promises:
            raise InputError(f"{self.path} is made for {', '.join(self.devices)}, got {device!r:.80}; give one of them")
        return replace(self, plan=self.promises[device].in_place_of(self.plan))

    def check(self, runtime: Runtime) -> None:
        """Whether this is a whole package and `runtime` may load it; before anything of it is loaded.

        InputError, or MissingError for a file that is not there, where the folder holds anything but the regular files
        that the manifest lists, where one of them is not what was written, where a promise is no finite number, and
        where the runtime would be told to do more than serve a model (`PackageFormat.check`).
        """
        for device in self.devices:
            _check_promises(self.promised_to(device).plan)
        self.check_files()
        sizes = {name: entry.bytes for name, entry in self.files.items()}
        runtime.packages.check(self.path, sizes, self.plan.workload)

    def check_files(self) -> None:
        """The part of `check` that needs no runtime: the folder holds what the manifest lists, and that alone."""
        self._check_names()
        for name, entry in self.files.items():
            path = self.path / name
            if path.stat().st_size != entry.bytes or sha256(path) != entry.sha256:
                raise InputError(f"{path} is damaged: its SHA-256 is not the manifest's; {_REMAKE}")

    def _check_names(self) -> None:
        for name in self.files:
            if not PLAIN_NAME.fullmatch(name) or name == MANIFEST:
                raise InputError(
                    f"a file of a package has a plain name, the manifest lists {name!r:.80}; do not load it"
                )
        there = {path.name: path.lstat().st_mode for path in self.path.iterdir()}
        for name in self.files:
            if name not in there:
                raise MissingError(f"the package {self.path} lacks {name}; {_REMAKE}")
        for name, mode in sorted(there.items()):
            if not stat.S_ISREG(mode):
                raise InputError(
                    f"a package holds regular files alone, {self.path / name} is none; remove it or {_REMAKE}"
                )
            if name not in self.files and name != MANIFEST:
                raise InputError(f"every file of a package is in its manifest, {self.path / name} is not; remove it")


def _check_promises(plan: Plan) -> None:
    chosen = plan.chosen
    for name in ("memory_bytes", "disk_bytes"):
        check(f"the promised {name}", getattr(chosen, name), int, least=1)
    for name in ("tpot_ms", "ttft_ms"):
        check(f"the promised {name}", getattr(chosen, name), float, least=0)
    timed = plan.device.get("kernels", [])
    if len(timed) > MOST_TIMED or any(k.rows * k.in_features * k.out_features > MOST_PRODUCTS for k in timed):
        raise InputError(
            f"a plan keeps {MOST_TIMED} kernels to time again at most, of {MOST_PRODUCTS} products at most"
        )
    for name, limit in plan.budget.to_json().items():
        check(f"the limit {name}", limit, float, optional=True, least=0)


def write_package(
    runtime: Runtime, files: PackageSource, plan: Plan, out: Path, progress: Progress | None = None,
    others: Mapping[str, Plan] | None = None,
) -> Package:  # fmt: skip
    """Export the plan's subnet into the folder `out`, whole or not at all.

    The same supernet, plan and versions give the same bytes in every file, whoever exports where, when, with how many
    threads and on which CPU; the manifest's date differs, unless SOURCE_DATE_EPOCH says it.

    `others` are the plans of further devices that take the same package, by name: the same subnet, context and batch.

    An older package at `out` is replaced. InputError where `out` is anything else, where the plan was made for other
    weights, where the weights are not those that training wrote, and where another export is at work there.
    """
    if plan.fingerprint != files.fingerprint:
        raise InputError(f"the plan was made for weights that have changed since; plan {files.path} again")
    files.check_hashes()
    out.parent.mkdir(parents=True, exist_ok=True)  # the lock lies there, too
    with locked(out, "another export"):
        _write(runtime, files, plan, others or {}, out, progress)
    return open_package(out)


def _write(
    runtime: Runtime, files: PackageSource, plan: Plan, others: Mapping[str, Plan], out: Path, progress: Progress | None
) -> None:
    check_replaceable(out)
    with new_folder(out) as folder:
        runtime.packages.write(
            files, plan.subnet, plan.workload, threads_of([plan, *others.values()]), folder, progress
        )
        write_probes(runtime, files, folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        write_proof(files, plan.subnet, plan.workload, size, folder / PROOF, progress)
        _check_loadable(runtime, files, plan, folder)
        entries = {path.name: Entry(sha256(path), path.stat().st_size) for path in sorted(folder.iterdir())}
        write_manifest(folder, runtime, plan, promises_of(others), entries)


def promises_of(plans: Mapping[str, Plan]) -> dict[str, Promise]:
    """By name, so that a manifest does not depend on the order in which a fleet names its devices."""
    return {name: Promise.of(plans[name]) for name in sorted(plans)}


def write_manifest(
    folder: Path, runtime: Runtime, plan: Plan, promises: Mapping[str, Promise], files: Mapping[str, Entry]
) -> None:
    """What the `files` in `folder` are and what is promised of them; nothing of where or by whom they were made."""
    manifest = {
        "kind": KIND,
        "schema": SCHEMA,
        "launch": runtime.packages.command(Path("."), plan.workload, plan.share),  # wherever the package is put
        "date": made_now(),
        "versions": runtime.versions(),
        "files": {name: asdict(entry) for name, entry in files.items()},
        "plan": plan.portable().to_json(),
        **({"promises": {name: promise.to_json() for name, promise in promises.items()}} if promises else {}),
    }
    write_json(folder / MANIFEST, manifest)


def threads_of(plans: Sequence[Plan]) -> int | None:
    """The threads to run with: the runtime's own choice where the devices differ."""
    threads = {plan.device.get("threads") for plan in plans}
    return threads.pop() if len(threads) == 1 else None


def _check_loadable(runtime: Runtime, files: PackageSource, plan: Plan, folder: Path) -> None:
    """InputError where `run` and `verify` would refuse what was written: a config may say what none is expected to."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    try:
        runtime.packages.check(folder, sizes, plan.workload)
    except InputError as error:
        raise InputError(f"{files.path} makes a package that would not be loaded: {error}") from None


def check_replaceable(out: Path, what: str = "package", manifest: str = MANIFEST) -> None:
    """InputError unless `out` is free, an empty folder or an older one of `what` is written, by its manifest."""
    if not out.exists() or (out.is_dir() and (not any(out.iterdir()) or _is_a(what, out / manifest))):
        return
    raise InputError(f"a {what} is written to a new folder or over an older {what}, {out} is neither; give another")


def _is_a(what: str, manifest: Path) -> bool:
    try:
        return read_json(manifest, f"{what} manifest", _REMAKE).get("kind") == f"bitfleet {what}"
    except InputError:
        return False


def open_package(path: Path) -> Package:
    """MissingError or InputError, one line with the next step, for what is missing, corrupt or something else.

    Reads the manifest alone: nothing that it says is true before `Package.check`.
    """
    if not path.is_dir():
        raise MissingError(f"no package at {path}; {_REMAKE}")
    data = read_json(path / MANIFEST, "package manifest", _REMAKE)
    if data.get("kind") != KIND or data.get("schema") != SCHEMA:
        raise InputError(f"{path / MANIFEST} is not a manifest of this version; {_REMAKE}")
    try:
        entries = as_record(dict[str, Entry], data.get("files"), "files")
        versions = as_record(dict[str, str], data.get("versions"), "versions")
        date = as_record(str, data.get("date"), "date")
        promises = as_record(dict[str, Promise], data.get("promises", {}), "promises")
        plan = Plan.from_json(as_record(dict[str, Any], data.get("plan"), "plan"))
        return Package(path.resolve(), plan, entries, versions, date, promises)
    except InputError as error:
        raise InputError(f"{path / MANIFEST} is damaged ({error}); {_REMAKE}") from None
