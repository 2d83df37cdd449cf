"""A fleet in one file: the devices to plan for, each with its budget and workload."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner.request import (
    Asked,
    Budget,
    ContextRange,
    host_limit,
    parse_bytes,
    parse_context,
    parse_duration,
    time_limit,
)
from planner.runtimes import AUTO, RUNTIMES
from profiles.catalog import load, names
from profiles.device import GPU_KINDS, DeviceProfile
from records.errors import InputError
from records.toml import Place, Toml, read_toml

THIS_MACHINE = "this-machine"
MOST_DEVICES = 1000
MOST_COUNT = 2**31
PLACED = ("host", "host-mem", "gpu-layers", "gpus")
"""Keys that say how a GPU shares a model with the machine that it is in."""
MAX_LOSS = 0.05
_REMEDY = "`bitfleet fleet --example` prints one that works"

EXAMPLE = """\
# A fleet: the devices that one supernet is exported for, by the fewest packages that serve them all well.
#   bitfleet fleet --example > fleet.toml
#   bitfleet fleet fleet.toml --export dist/

# The folder that `bitfleet train` made, from here; without this line, that of the embedded default model.
# supernet = "supernet/"

# A device may share another's package as long as it loses at most so much more than its own best plan would.
max-loss = "5%"

# What holds for every device that does not say otherwise.
[defaults]
context = 2048              # tokens that prompt and answer may have together; left out: 4096, or what the model can;
#                           # "2048..8192" or "max": the longest that the limits leave room for
# batch = 1                 # sequences at once
# prompt-tokens = 128       # of the prompt that `ttft` is for
# kv-cache = "auto"         # how keys and values are kept: what loses least, or a type such as "q8_0"; left out: as the
#                           # runtime does unasked
# runtime = "onnxruntime"   # what loads the package; left out: of those that run on the device and are installed here
#                           # the one that loses least, so a name where packages shall not follow from what is installed

[[device]]
device = "raspberry-pi-5-8gb"   # a name of `bitfleet profile list`
mem = "400MB"                   # peak memory of the process: 8GB, 8GiB, 8192MB
latency = "50ms"                # time per token; or target-tps = 20, tokens a second of each sequence

[[device]]
name = "kiosk"                  # how tables and packages call it; left out: the device's own name
device = "laptop-i5-1240p-8gb"
mem = "320MB"
disk = "150MB"                  # of the weight files

[[device]]
name = "desk"
device = "desktop-ryzen-5600-16gb"
mem = "600MB"
ttft = "500ms"                  # time to the first token
context = 4096

# Without `mem`, and without a default for it, the budget is what the device has: of a measured one what was free then,
# of a catalogue entry all of it, which the system and other programs share. So give `mem` where others run.
[[device]]
device = "graviton3-128gb"
batch = 4

# What no catalogue has: fields of a device, all of them or those in which it is not like another.
[[device]]
name = "small-pi"
device = { like = "raspberry-pi-5-8gb", memory = "4GB" }
mem = "300MB"

[[device]]
name = "thin-client"
mem = "500MB"
[device.device]
kind = "cpu"
memory = "8GB"
bandwidth = "38.4GB/s"          # of memory; with clock, threads and instruction-sets times can be estimated
clock = "2.0GHz"
threads = 4
instruction-sets = ["avx2"]

# A GPU and the machine that it is in: layers that do not fit on the GPU stay there.
# [[device]]
# name = "gaming-pc"
# device = "rtx-4060-8gb"
# runtime = "llamacpp"
# mem = "7GB"                   # of the GPU
# host = "desktop-ryzen-5600-16gb"
# host-mem = "8GB"              # of the machine; left out: all that it has
# gpu-layers = 31               # as llama.cpp counts them, the output too; left out: decided

# A model divided over GPUs that are alike (vLLM):
# [[device]]
# name = "server"
# device = "l40s-48gb"
# runtime = "vllm"
# gpus = 4
# batch = 16
# mem = "40GB"                  # of each GPU

# A profile that `bitfleet profile device --out board.json` wrote on the device, from this file's folder:
# [[device]]
# device = "board.json"

# The machine that plans; it is profiled on first use:
# [[device]]
# device = "this-machine"
# mem = "500MB"
"""


@dataclass(frozen=True)
class Wanted:
    """One device of a fleet. `device` is as it was given, `profile` what it stands for, a GPU's host with it."""

    name: str
    device: str | Mapping[str, Any]
    profile: DeviceProfile
    budget: Budget
    runtime: str = AUTO
    asked: Asked = Asked()


@dataclass(frozen=True)
class Fleet:
    """`supernet` is a path from here, None for the default model's; `max_loss` a share: 0.05 is 5 %."""

    supernet: str | None
    max_loss: float
    devices: tuple[Wanted, ...]


def read_fleet(path: Path, own: Callable[[str], DeviceProfile] | None = None) -> Fleet:
    """The fleet in a TOML file. `own` profiles this machine for a runtime, and is asked last.

    MissingError or InputError, one line with the file and the line in it, for anything that is not as in `EXAMPLE`.
    """
    read = _Reading(read_toml(path, "fleet", _REMEDY))
    top = read.table((), _TOP, "a fleet")
    defaults = read.defaults() if "defaults" in top else {}
    tables = top.get("device")
    if not isinstance(tables, list) or not tables:
        raise read.wrong(("device",), f"a fleet has at least one device, under [[device]]; {_REMEDY}")
    if len(tables) > MOST_DEVICES:
        raise read.wrong(("device", MOST_DEVICES), f"a fleet has at most {MOST_DEVICES} devices, got {len(tables)}")
    devices = [read.device(("device", number), defaults) for number in range(len(tables))]
    first: dict[str, int] = {}
    for number, device in enumerate(devices):
        if device["name"] in first:
            before = read.toml.at("device", first[device["name"]]).rpartition(":")[2]
            place: Place = ("device", number, "name")
            raise read.wrong(place, f"{device['name']!r} names a device twice, first on line {before}; give a `name`")
        first[device["name"]] = number
    for number, device in enumerate(devices):
        if device["profile"] is None:
            if own is None:
                raise read.wrong(("device", number, "device"), "this machine is no device here; name another")
            own_profile = {**device, "profile": own(device["runtime"])}
            devices[number] = read.placed(("device", number), own_profile, defaults)
    supernet = top.get("supernet")
    return Fleet(
        None if supernet is None else os.path.normpath(path.parent / supernet),
        top.get("max-loss", MAX_LOSS),
        tuple(_wanted(device) for device in devices),
    )


def in_keys(line: str) -> str:
    """A line about a device as its file has it: `mem = "8GB"` for `--mem 8GB`. Keys are called as flags of `plan`."""
    return _FLAG.sub(_key, line)


def _key(found: re.Match[str]) -> str:
    key, value = found["key"], found["value"]
    return key if value is None else f"{key} = {value}" if value.isdecimal() else f'{key} = "{value}"'


def _wanted(device: Mapping[str, Any]) -> Wanted:
    profile, said = device["profile"], device.get
    budget = Budget(
        said("mem") or max(1, profile.usable_bytes),
        time_limit(said("latency"), said("target-tps")),
        said("ttft"),
        said("disk"),
        host_memory_bytes=said("host-mem"),
    )
    asked = Asked(
        said("context"), said("batch", 1), said("prompt-tokens"), said("kv-cache"), said("gpu-layers"), said("gpus", 1)
    )
    return Wanted(device["name"], device["device"], profile, budget, device["runtime"], asked)


class _Reading:
    """A file whose tables are read key by key, and every complaint begins with the line that it is about."""

    def __init__(self, toml: Toml) -> None:
        self.toml = toml

    def wrong(self, place: Place, said: str) -> InputError:
        return InputError(f"{self.toml.at(*place)}: {said}")

    @contextmanager
    def saying(self, place: Place) -> Iterator[None]:
        """What is complained about within is said with its line."""
        try:
            yield
        except InputError as error:
            raise self.wrong(place, f"{error}") from None

    def table(self, place: Place, keys: Mapping[str, Callable[[Any], Any]], what: str) -> dict[str, Any]:
        """The values of a table, each through the reader of its key."""
        value: Any = self.toml.data
        for step in place:
            value = value[step]
        if not isinstance(value, dict):
            raise self.wrong(place, f"{what} must be a table, got {value!r:.80}")
        found = {}
        for key, given in value.items():
            if key not in keys:
                raise self.wrong((*place, key), f"no key {key!r:.80} for {what}; {_nearest(key, keys)}")
            try:
                found[key] = keys[key](given)
            except InputError as error:
                raise self.wrong((*place, key), f"{key}: {error}") from None
        return found

    def defaults(self) -> dict[str, Any]:
        found = self.table(("defaults",), _DEFAULTS, "the defaults")
        return found | self.host(("defaults", "host"), found)

    def device(self, place: Place, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """What a device says and what the defaults say beside that; of this machine the profile is None yet."""
        own = self.table(place, _DEVICE, "a device")
        own |= self.host((*place, "host"), own)
        if own.keys() & {"latency", "target-tps"}:  # a device's own limit of time takes the place of both defaults
            defaults = {key: value for key, value in defaults.items() if key not in ("latency", "target-tps")}
        general = {key: value for key, value in defaults.items() if key not in PLACED}
        found: dict[str, Any] = {"runtime": AUTO, **general, **own}
        if "device" not in found:
            raise self.wrong(place, f"a device needs the key 'device', a name, a profile or its fields; {_REMEDY}")
        given, at = found["device"], (*place, "device")
        if isinstance(given, dict):
            if "name" not in found:
                raise self.wrong(place, "a device of fields needs a `name`")
            found["profile"] = self.inline(at, found["name"])
        else:
            found.setdefault("name", Path(given).stem if _is_file(given) else given)
            with self.saying(at):
                found["profile"] = self.named(given)
        with self.saying(place):
            time_limit(found.get("latency"), found.get("target-tps"), ("latency", "target-tps"))
        context, prompt = found.get("context"), found.get("prompt-tokens")
        if isinstance(context, ContextRange):
            context = None if context.open else context.shortest
        if context is not None and prompt is not None and prompt >= context:
            raise self.wrong(place, f"prompt-tokens must be below the context of {context}, got {prompt}")
        if found["profile"] is not None:
            return self.placed(place, found, defaults)
        if "host" in own:
            said = f"a host is the machine that a GPU is in; name the GPU as the device, got {THIS_MACHINE!r}"
            raise self.wrong((*place, "host"), said)
        return found

    def placed(self, place: Place, device: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The device with its host in its profile. What the defaults say of hosts and of several GPUs is for GPUs with
        a memory of their own, and hosts are not for one whose profile knows its own."""
        profile: DeviceProfile = device["profile"]
        if profile.kind in GPU_KINDS and not profile.shares_memory:
            known = {"host": profile.host} if profile.host is not None else {}
            device = {key: defaults[key] for key in PLACED if key in defaults} | known | device
        if "host" in device:
            with self.saying((*place, "host")):
                profile = replace(profile, host=device["host"])
        with self.saying((*place, "host-mem")):
            host_limit(device.get("host-mem"), profile.host is not None, ("host-mem", "host"))
        if "gpu-layers" in device and profile.kind not in GPU_KINDS:
            said = f"gpu-layers counts layers on a GPU, {device['name']} is of kind {profile.kind}"
            raise self.wrong((*place, "gpu-layers"), said)
        if device.get("gpus", 1) > 1 and profile.kind not in GPU_KINDS:
            said = f"gpus divides a model over GPUs, {device['name']} is of kind {profile.kind}"
            raise self.wrong((*place, "gpus"), said)
        return {**device, "profile": profile}

    def named(self, name: str) -> DeviceProfile | None:
        return None if name == THIS_MACHINE else self.known(name)

    def known(self, name: str) -> DeviceProfile:
        return DeviceProfile.load(self.toml.path.parent / name) if _is_file(name) else load(name)

    def host(self, place: Place, said: Mapping[str, Any]) -> dict[str, DeviceProfile]:
        """The profile of the machine that a table names as `host`; {} where it names none."""
        with self.saying(place):
            return {"host": self.known(said["host"])} if "host" in said else {}

    def inline(self, place: Place, name: str) -> DeviceProfile:
        fields = self.table(place, _FIELDS, "a device's fields")
        like = fields.pop("like", None)
        missing = [key for key in ("kind", "memory") if key not in fields]
        if like is None and missing:
            raise self.wrong(place, f"a device's fields need {' and '.join(missing)}, or `like` another device")
        data = {_NAMES.get(key, key): value for key, value in fields.items()}
        if "bandwidth_bytes_per_s" in data:
            data |= {"bandwidth_basis": "datasheet", "bandwidth_spread": None}
        unsaid = {"vendor": "unknown", "model": name, "date": "unknown"} if like is None else load(like).to_json()
        with self.saying(place):
            return DeviceProfile.from_json({**unsaid, **data, "name": name, "measured": False, "source": "fleet file"})


def _nearest(key: str, keys: Collection[str]) -> str:
    near = difflib.get_close_matches(key.lower().replace("_", "-"), keys, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(keys)}"


def _is_file(name: str) -> bool:
    return name.endswith(".json") or "/" in name or os.sep in name


# --- readers of values: InputError says what is accepted ----------------------------------------------------------


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > 200:
        raise InputError(f"must be text of 1 to 200 printable characters, got {value!r:.80}")
    return value


def _name(value: Any) -> str:
    if len(text := _text(value)) > 80 or text != text.strip():
        raise InputError(f"must be at most 80 characters without spaces around them, got {value!r:.80}")
    return text


def _size(value: Any) -> int:
    return parse_bytes(_quoted(value, "8GB"))


def _time(value: Any) -> float:
    return parse_duration(_quoted(value, "20ms"))


def _quoted(value: Any, example: str) -> str:
    if not isinstance(value, str):
        raise InputError(f'must be text such as "{example}", got {value!r:.80}')
    return value


def _rate_of_tokens(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"must be a number of tokens a second such as 20, got {value!r:.80}")
    time_limit(None, float(value), ("latency", "it"))
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < MOST_COUNT:
        raise InputError(f"must be a whole number of at least 1, got {value!r:.80}")
    return value


def _context(value: Any) -> int | ContextRange:
    return parse_context(value) if isinstance(value, str) else _count(value)


def _share(value: Any) -> float:
    found = re.fullmatch(r"\s*(\d{1,4}(?:\.\d{0,6})?)\s*%\s*", value, re.ASCII) if isinstance(value, str) else None
    if found is None:
        raise InputError(f'must be text such as "5%", got {value!r:.80}')
    return float(found[1]) / 100


def _rate(value: Any) -> float:
    text = _quoted(value, "50GB/s")
    if not text.strip().endswith("/s"):
        raise InputError(f'must be text such as "50GB/s", got {value!r:.80}')
    return float(parse_bytes(text.strip().removesuffix("/s")))


def _clock(value: Any) -> float:
    found = re.fullmatch(
        r"\s*(\d{1,4}(?:\.\d{0,6})?)\s*(GHz|MHz)\s*", _quoted(value, "2.4GHz"), re.IGNORECASE | re.ASCII
    )
    if found is None:
        raise InputError(f'must be text such as "2.4GHz", got {value!r:.80}')
    return float(found[1]) * (1e9 if found[2].lower() == "ghz" else 1e6)


def _runtime(value: Any) -> str:
    return _one_of(value, (AUTO, *RUNTIMES))


def _cache(value: Any) -> str:
    known = dict.fromkeys(cache.name for runtime in RUNTIMES.values() for cache in runtime.caches)
    return ",".join(_one_of(name, (AUTO, *known)) for name in _text(value).split(","))


def _catalogued(value: Any) -> str:
    if (text := _text(value)) not in names():
        load(text)  # says which are near
    return text


def _one_of(value: Any, known: tuple[str, ...]) -> str:
    if (text := _text(value)) not in known:
        near = difflib.get_close_matches(text, known, n=1)
        raise InputError(
            f"must be one of {', '.join(known)}, got {text!r:.80}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return text


def _sets(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise InputError(f'must be a list such as ["avx2"], got {value!r:.80}')
    return [_text(one) for one in value]


def _as_it_is(value: Any) -> Any:
    return value


def _device(value: Any) -> str | dict[str, Any]:
    return value if isinstance(value, dict) else _text(value)


_ANY = {
    "runtime": _runtime, "mem": _size, "latency": _time, "target-tps": _rate_of_tokens, "ttft": _time, "disk": _size,
    "context": _context, "batch": _count, "prompt-tokens": _count, "kv-cache": _cache,
    "host": _text, "host-mem": _size, "gpu-layers": _count, "gpus": _count,
}  # fmt: skip
_TOP = {"supernet": _text, "max-loss": _share, "defaults": _as_it_is, "device": _as_it_is}
_DEFAULTS = _ANY
_DEVICE = {"name": _name, "device": _device, **_ANY}
_FIELDS = {
    "like": _catalogued, "kind": _text, "memory": _size, "bandwidth": _rate, "clock": _clock, "threads": _count,
    "cores": _count, "instruction-sets": _sets, "architecture": _text, "vendor": _text, "model": _text,
}  # fmt: skip
_NAMES = {
    "memory": "memory_bytes", "bandwidth": "bandwidth_bytes_per_s", "clock": "clock_hz", "cores": "cores_physical",
    "instruction-sets": "instruction_sets",
}  # fmt: skip
_FLAG = re.compile(
    rf"--(?P<key>{'|'.join(_DEVICE)})(?![\w-])(?: (?P<value>\d(?:[\w.]*\w)?|(?<=kv-cache )[a-z0-9_,]+))?", re.ASCII
)
