"""Names to instances: devices, supernets, runtimes, and where the platform keeps what is made on first use."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from commands.terminal import note
from commands.waiting import progress
from records.atomic import check_output
from records.cache import cache_dir
from records.errors import InputError, NotInstalledError
from records.installed import require_training

if TYPE_CHECKING:
    from planner.plan import Plan
    from planner.runtimes.base import Runtime
    from profiles.device import DeviceProfile
    from supernet.checkpoint import SupernetFiles

Number = TypeVar("Number", int, float)

AUTO = "auto"  # `planner.runtimes.AUTO`, which need not be imported to print a help
DEFAULT_MINUTES = 5.0  # of training, for the default supernet on first use


def make_cache() -> Path:
    """The cache's folder; InputError before the work where nothing can be kept there."""
    folder, next_step = cache_dir(), "set BITFLEET_CACHE to a folder that you may write"
    check_output(folder / "any", folder=True, next_step=next_step)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_launcher() -> None:
    """InputError where variables that a launcher left would make this process wait for others that never come."""
    said = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ]
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    if said and missing:
        raise InputError(
            f"{' and '.join(said)} say that this is one of several processes, but {' and '.join(missing)} must be set "
            f"then; start with `accelerate launch cli.py`, or `unset {' '.join(said)}`"
        )
    wrong = [name for name in said if not os.environ[name].isdecimal()]
    if wrong:
        raise InputError(f"{wrong[0]} must be a whole number, got {os.environ[wrong[0]]!r}; `unset {' '.join(said)}`")
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    if several and "TORCHELASTIC_RUN_ID" not in os.environ and "ACCELERATE_MIXED_PRECISION" not in os.environ:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        note(f"waiting at {address} for all {os.environ['WORLD_SIZE']} processes that WORLD_SIZE says there are")


def own_profile_path() -> Path:
    return cache_dir() / "device.json"


def measure_device(device: str, quick: bool, path: Path, runtime: str = AUTO) -> DeviceProfile:
    """Profile a device of this machine into `path`, saying which devices were passed over and why; with every runtime
    that is installed, or with the one that is named."""
    from planner.profiling import profile_device, with_others
    from planner.runtimes import installed
    from profiles.others import BUSY, share_of_others, spent

    before = spent()
    timed = installed().found if runtime == AUTO else (runtime_named(runtime),)
    with progress() as report:
        found, skipped = profile_device(device, timed, quick, report)
    others = share_of_others(before, spent(), os.cpu_count() or 1)
    for one in skipped:
        note(f"note: {one.device} is passed over: {one.reason}")
    if others >= BUSY:
        took = f"others took {others:.0%} of this machine while it was timed"
        note(f"note: {took}, so its times may be too long; profile it again when it is quiet")
    if runtime != AUTO:
        found = with_others(found, _known(path))
    found.save(path)
    return found


def _known(path: Path) -> DeviceProfile | None:
    """The profile in a file; None where there is none, or none of today."""
    from profiles.device import DeviceProfile

    try:
        return DeviceProfile.load(path)
    except InputError:
        return None


def own_device(runtime: str = AUTO) -> DeviceProfile:
    """This machine's profile from the cache, with the memory available now; profiled quickly where there is none."""
    from profiles.cpu import profile_cpu
    from profiles.device import DeviceProfile

    path, now = own_profile_path(), profile_cpu(measure_bandwidth=False)
    known = DeviceProfile.load(path) if path.is_file() else None
    if known is None or (known.kind == "cpu" and known.name != now.name):
        why = "has no profile yet" if known is None else f"is not the {known.name} that {path} describes"
        note(f"this machine {why}: profiling it quickly; `bitfleet profile device` takes longer and is more exact")
        make_cache()
        return measure_device("auto", True, path, runtime)
    changing = ("available_bytes", "cgroup_limit_bytes", "cgroup_used_bytes")
    changed = {name: getattr(now, name) for name in changing}
    if known.kind == "cpu":
        return dataclasses.replace(known, **changed)
    if known.host is None or known.host.name != now.name:
        return known
    return dataclasses.replace(known, host=dataclasses.replace(known.host, **changed))


def device_named(name: str) -> DeviceProfile:
    """A profile file where `name` looks like one, else a device of the catalogue."""
    from profiles.catalog import load
    from profiles.device import DeviceProfile

    if name.endswith(".json") or os.sep in name or Path(name).is_file():
        return DeviceProfile.load(name)
    return load(name)


def hosted(device: DeviceProfile | None, host: str) -> DeviceProfile:
    """A GPU in the machine that `host` names. InputError where it is no GPU with a memory of its own."""
    if device is None:
        raise InputError("--host is the machine that a GPU is in; name the GPU with --device")
    return dataclasses.replace(device, host=device_named(host))


def planned_device(made: Plan, named: str | None) -> DeviceProfile:
    """The profile of the device that a plan was made for; InputError where it is not at hand, or `named` is another."""
    from profiles.catalog import names

    wanted, own = made.device["name"], own_profile_path()
    if named is not None or wanted in names():
        found: DeviceProfile | None = device_named(named or wanted)
    else:
        found = _known(own) if own.is_file() else None
    if found is not None and found.host is None and (host := made.device.get("host")) in names():
        found = hosted(found, f"{host}")
    if found is None or found.name != wanted:
        raise InputError(f"what another runtime costs needs the profile of {wanted}; give its file with --device FILE")
    return found


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    return numbers_in(option, text, int, "whole numbers with commas such as 2,3,4,8")


def numbers_in(option: str, text: str, kind: Callable[[str], Number], example: str) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} must be {example}, got {text!r}") from None


def trained_supernet(path: str, trust: bool = False) -> SupernetFiles:
    from supernet.checkpoint import open_supernet

    whole = Path(path).resolve()  # a plan keeps the path, and may be exported from another folder
    return open_supernet(whole, trust_remote_code=trust)


def default_supernet() -> SupernetFiles:
    """The embedded default model's supernet, made on first use and kept in the cache. A start that was stopped is gone
    on with, and another process that makes it is waited for."""
    from supernet.checkpoint import SUPERNET, open_supernet

    home = default_supernet_path()
    if (home / SUPERNET).is_file():
        files = open_supernet(home, unfinished=True)
        if files.finished:
            return files
    require_training()
    make_cache()
    check_launcher()
    note(f"making the default supernet in {home}, once: about {DEFAULT_MINUTES + 3:.0f} minutes")
    from commands.needs import check_needs
    from supernet.create import create
    from supernet.loading import DEFAULT_MODEL, describe
    from supernet.recipe import Recipe

    recipe = Recipe(minutes=DEFAULT_MINUTES)
    check_needs(describe(DEFAULT_MODEL)[1], recipe, home)
    with progress() as report:
        return create(DEFAULT_MODEL, home, recipe, resume=True, progress=report, waiting=note)


def default_supernet_path() -> Path:
    """One of an earlier format stays beside that which is made in its place."""
    from supernet.index import FORMAT

    return cache_dir() / f"supernet-{FORMAT}"


def runtime_named(name: str) -> Runtime:
    from planner.runtimes import RUNTIMES

    check_runtime(name)
    return RUNTIMES[name]()


def check_runtime(name: str) -> None:
    """InputError where `name` is neither a runtime's nor AUTO, or that of a runtime that cannot be loaded."""
    from planner.runtimes import BROKEN, RUNTIMES

    if name in BROKEN:
        raise InputError(BROKEN[name])
    one_of("--runtime", {AUTO: None, **RUNTIMES}, name)


def check_cache(kind: str | None, runtime: str) -> None:
    """InputError where none of the runtimes that are asked for keeps a KV cache of one of these types."""
    from planner.runtimes import RUNTIMES

    members = [*RUNTIMES.values()] if runtime == AUTO else [RUNTIMES[runtime]]
    known = {AUTO, *(cache.name for member in members for cache in member.caches)}
    wrong = [name for name in (kind or AUTO).split(",") if name not in known]
    if wrong:
        each = "; ".join(f"{one.name} keeps {', '.join(cache.name for cache in one.caches)}" for one in members)
        raise InputError(f"--kv-cache must be auto or a type that the runtime has, got {wrong[0]!r:.40}: {each}")


def runtimes_for(name: str, device: DeviceProfile) -> tuple[tuple[Runtime, ...], dict[str, str]]:
    """The runtime of that name; for AUTO all that run on the device and are installed, and what to install for more."""
    from planner.runtimes import RUNTIMES, installed

    if name != AUTO:
        return (runtime_named(name),), {}
    here = installed().on(device)
    found, missing = here.found, here.missing
    if not found and missing:
        raise NotInstalledError("; ".join(missing.values()))
    return found or tuple(member() for member in RUNTIMES.values()), missing  # without any, each will say why


def one_of(option: str, family: Mapping[str, Any], name: str) -> Any:
    """The member of a family that is called `name`; InputError lists the names."""
    if name not in family:
        raise InputError(f"{option} must be one of {', '.join(family)}, got {name!r}")
    return family[name]
