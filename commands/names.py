"""Names to instances: devices, supernets, runtimes, and where the platform keeps what is made on first use."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from commands.terminal import note, progress
from records.errors import InputError, MissingError

if TYPE_CHECKING:
    from planner.runtimes.base import Runtime
    from profiles.device import DeviceProfile
    from supernet.checkpoint import SupernetFiles

Number = TypeVar("Number", int, float)

RUNTIME = "onnxruntime"
DEFAULT_MINUTES = 5.0  # of training, for the default supernet on first use


def cache_dir() -> Path:
    """Where the platform keeps caches: this machine's profile and the default supernet. BITFLEET_CACHE overrides it."""
    chosen = os.environ.get("BITFLEET_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "bitfleet"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitfleet"


def own_profile_path() -> Path:
    from planner.doctor import PROFILE_FILE

    return cache_dir() / PROFILE_FILE


def measure_device(device: str, quick: bool, path: Path, runtime: str = RUNTIME) -> DeviceProfile:
    """Profile a device of this machine into `path`, saying which devices were passed over and why."""
    from planner.pipeline import profile_device

    with progress() as report:
        found, skipped = profile_device(device, runtime_named(runtime), quick, report)
    for one in skipped:
        note(f"note: {one.device} is passed over: {one.reason}")
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path)
    return found


def own_device(runtime: str) -> DeviceProfile:
    """This machine's profile from the cache, with the memory available now; profiled quickly where there is none."""
    from profiles.cpu import profile_cpu
    from profiles.device import DeviceProfile

    path, now = own_profile_path(), profile_cpu(measure_bandwidth=False)
    known = DeviceProfile.load(path) if path.is_file() else None
    if known is None or (known.kind == "cpu" and known.name != now.name):
        why = "has no profile yet" if known is None else f"is not the {known.name} that {path} describes"
        note(f"this machine {why}: profiling it quickly; `bitfleet profile device` takes longer and is more exact")
        return measure_device("auto", True, path, runtime)
    if known.kind != "cpu":
        return known
    changing = ("available_bytes", "cgroup_limit_bytes", "cgroup_used_bytes")
    return dataclasses.replace(known, **{name: getattr(now, name) for name in changing})


def device_named(name: str) -> DeviceProfile:
    """A profile file where `name` looks like one, else a device of the catalogue."""
    from profiles.catalog import load
    from profiles.device import DeviceProfile

    if name.endswith(".json") or os.sep in name or Path(name).is_file():
        return DeviceProfile.load(name)
    return load(name)


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    return numbers_in(option, text, int, "whole numbers with commas such as 2,3,4,8")


def numbers_in(option: str, text: str, kind: Callable[[str], Number], example: str) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} must be {example}, got {text!r}") from None


def check_parent(out: Path) -> None:
    """MissingError before the work and not after it."""
    if not out.parent.is_dir():
        raise MissingError(f"no folder {out.parent} to write {out.name} into; make it, or give another --out")


def trained_supernet(path: str) -> SupernetFiles:
    from supernet.checkpoint import open_supernet

    return open_supernet(Path(path).resolve())  # a plan keeps the path, and may be exported from another folder


def default_supernet() -> SupernetFiles:
    """The embedded default model's supernet, made on first use and kept in the cache."""
    from supernet.checkpoint import open_supernet

    home = default_supernet_path()
    if home.is_dir():
        files = open_supernet(home, unfinished=True)
        if files.finished:
            return files
    note(f"making the default supernet in {home}, once: about {DEFAULT_MINUTES + 3:.0f} minutes")
    from supernet.create import create
    from supernet.model import DEFAULT_MODEL
    from supernet.recipe import Recipe

    home.parent.mkdir(parents=True, exist_ok=True)
    with progress() as report:
        return create(DEFAULT_MODEL, home, Recipe(minutes=DEFAULT_MINUTES), resume=True, progress=report)


def default_supernet_path() -> Path:
    from planner.doctor import SUPERNET_FOLDER

    return cache_dir() / SUPERNET_FOLDER


def runtime_named(name: str) -> Runtime:
    from planner.runtimes import RUNTIMES

    return one_of("--runtime", RUNTIMES, name)()


def one_of(option: str, family: Mapping[str, Any], name: str) -> Any:
    """The member of a family that is called `name`; InputError lists the names."""
    if name not in family:
        raise InputError(f"{option} must be one of {', '.join(family)}, got {name!r}")
    return family[name]
