"""bitfleet profile: what a device is and how fast its runtime's kernels are on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands.names import (
    AUTO,
    check_runtime,
    device_named,
    make_cache,
    measure_device,
    own_profile_path,
    runtime_named,
)
from commands.outputs import PROFILE, check_file
from commands.reports import print_anchors, print_device
from commands.terminal import JSON, emit, note, say, table
from planner.amounts import rate, size
from records.atomic import check_output
from records.errors import InputError

if TYPE_CHECKING:
    from planner.runtimes.base import Runtime
    from profiles.anchor import Figure
    from profiles.device import DeviceProfile


@click.group()
def profile() -> None:
    """What a device is and how fast its runtime's kernels are on it."""


@profile.command("device")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda:N", help="What to profile.")
@click.option("--runtime", default=AUTO, show_default=True, help="What to time: all that is installed, or a name.")
@click.option("--quick", is_flag=True, help="Fewer shapes and repeats: under a minute, wider error bands.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the profile; the default is the cache.")
@JSON
def profile_device(device: str, runtime: str, quick: bool, out: Path | None, as_json: bool) -> None:
    """Measure this machine and write its profile."""
    check_runtime(runtime)
    if out is None:
        make_cache()
    path = out or own_profile_path()
    if out is None:
        check_output(path)  # what is in the cache is ours to replace
    else:
        check_file(path, PROFILE)
    found = measure_device(device, quick, path, runtime)
    if as_json:
        emit(found.to_json())
    else:
        print_device(found)
    note(f"wrote {path}")


@profile.command("list")
@click.option("--runtime", metavar="NAME", help="Those that this runtime's packages can be planned for, with notes.")
@JSON
def profile_list(runtime: str | None, as_json: bool) -> None:
    """The catalogue of devices that a plan can be made for."""
    from profiles.catalog import load, names

    entries = [load(name) for name in names()]
    if runtime is not None:
        _list_for(runtime_named(runtime), entries, as_json)
    elif as_json:
        emit([entry.to_json() for entry in entries])
    else:
        rows = [(e.name, e.kind, size(e.memory_bytes), rate(e.bandwidth_bytes_per_s), e.model) for e in entries]
        table(("NAME", "KIND", "MEMORY", "BANDWIDTH", "MODEL"), rows)


def _list_for(runtime: Runtime, entries: Sequence[DeviceProfile], as_json: bool) -> None:
    """Devices of the runtime's kinds, each with what runs there, or why it is refused."""
    known = [one for one in entries if one.kind in runtime.device_kinds]
    refusals = {one.name: runtime.device_refusal(one) for one in known}
    said = {one.name: refusals[one.name] or runtime.device_note(one) for one in known}
    if as_json:
        emit([{**e.to_json(), "refused": refusals[e.name] is not None, "note": said[e.name]} for e in known])
        return
    able = [one for one in known if refusals[one.name] is None]
    rows = [(e.name, size(e.memory_bytes), rate(e.bandwidth_bytes_per_s), said[e.name]) for e in able]
    table(("NAME", "MEMORY", "BANDWIDTH", f"WITH {runtime.name.upper()}"), rows)
    refused: dict[str, list[str]] = {}  # by reason: what is refused for its maker is many devices
    for one in known:
        if one not in able:
            refused.setdefault(said[one.name].replace(one.name, "it"), []).append(one.name)
    for why, named in refused.items():
        say(f"not {', '.join(named)}: {why}")


@profile.command("show")
@click.argument("name", metavar="NAME|FILE")
@JSON
def profile_show(name: str, as_json: bool) -> None:
    """One device, from the catalogue or from a file."""
    found = device_named(name)
    if as_json:
        emit(found.to_json())
    else:
        print_device(found)


@profile.command("anchor")
@click.argument("name", metavar="DEVICE")
@click.option(
    "--llama-bench",
    "bench",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="What `llama-bench -p 0 -n 128 -o json` wrote on that device, of one or two models.",
)
@click.option(
    "--figure",
    "typed",
    multiple=True,
    metavar="TYPE,SIZE,PARAMETERS,SPEED",
    help="A figure of yours, such as Q4_K_M,4.92GB,8.03B,46.2: type and size of a file, parameters, tokens a second.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write the profile; DEVICE.json if not said.",
)
@JSON
def profile_anchor(name: str, bench: Path | None, typed: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Mend a device's estimate for llama.cpp by figures of its own."""
    from profiles.anchor import anchored, build_of, figures
    from profiles.shares import backend_of
    from records.reading import read_value

    if bench is None and not typed:
        raise InputError("figures of the device are needed: --llama-bench FILE or --figure Q4_K_M,4.92GB,8.03B,46.2")
    device = device_named(name)
    path = out or Path(f"{device.name}.json")
    check_file(path, PROFILE)
    seen, build = [_figure(text, backend_of(device)) for text in typed], ""
    if bench is not None:
        rows = read_value(bench, "output of llama-bench", "write it with `llama-bench -p 0 -n 128 -o json`")
        seen += figures(rows, str(bench))
        build = build_of(rows)
    found = anchored(device, seen, build)
    found.save(path)
    if as_json:
        emit(found.to_json())
    else:
        print_anchors(device, found)
    note(f"wrote {path}")


def _figure(text: str, backend: str) -> Figure:
    from planner.request import parse_bytes
    from profiles.anchor import Figure, layers_of
    from profiles.shares import group_of

    found = re.fullmatch(r"([^,]+),([^,]+),(\d+(?:\.\d+)?)([MB]),(\d+(?:\.\d+)?)", text.replace(" ", ""))
    if not found or min(float(found[3]), float(found[5])) <= 0:
        raise InputError(
            f"--figure is type, size, parameters and tokens a second, Q4_K_M,4.92GB,8.03B,46.2; got {text!r}"
        )
    parameters = float(found[3]) * {"M": 1e6, "B": 1e9}[found[4]]
    return Figure(backend, group_of(found[1]), parse_bytes(found[2]), layers_of(parameters), float(found[5]))
