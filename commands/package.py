"""bitfleet export, verify and run: the package of a plan, its promises, its answers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands.exits import BROKEN, OK
from commands.names import planned_device, runtime_named
from commands.outputs import RECEIPT, check_file
from commands.reports import print_rows
from commands.streams import reader_left
from commands.terminal import JSON, TRUST, emit, note, say, stream
from commands.waiting import progress
from planner.amounts import size
from records.atomic import check_output
from records.dates import made_now
from records.errors import InputError, MissingError, SystemFailure
from records.installed import require_training

if TYPE_CHECKING:
    from planner.package import Package
    from planner.plan import Plan
    from planner.rows import Row
    from planner.runtimes.base import Runtime
    from profiles.device import DeviceProfile
    from supernet.checkpoint import SupernetFiles

ALL = "all"  # runtimes


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The package's folder; it appears whole.")
@click.option("--supernet", metavar="DIR", help="Where the supernet lies now; the default is where it was planned.")
@click.option(
    "--runtime",
    metavar="all|NAME,...",
    help="Write the same subnet for these runtimes, each that can load it, into folders of --out.",
)
@click.option("--device", metavar="NAME|FILE", help="With --runtime: the plan's device, where a file has it.")
@TRUST
def export(plan: Path, out: Path, supernet: str | None, runtime: str | None, device: str | None, trust: bool) -> None:
    """Write the package of a plan: what the runtime loads, the tokenizer, and a manifest."""
    from planner.package import check_replaceable, write_package
    from planner.plan import Plan
    from planner.probes import Probes
    from supernet.checkpoint import SUPERNET, open_supernet

    made_now()  # a wrong SOURCE_DATE_EPOCH is said now, and not after the work
    made = Plan.load(plan)
    profile = None if runtime is None else planned_device(made, device)
    check_output(out, folder=True)
    if runtime is None:
        check_replaceable(out)
    if supernet is None and not (Path(made.supernet) / SUPERNET).is_file():
        raise MissingError(
            f"no supernet at {made.supernet}, where {plan} was made; say where it is now: --supernet DIR"
        )
    require_training()
    files = open_supernet(supernet or made.supernet, trust_remote_code=trust)
    made.check(files.space)
    own = made.opened(files)
    wanted = {out: made} if profile is None or runtime is None else _for_runtimes(files, made, runtime, profile, out)
    for folder, one in wanted.items():
        with progress() as report:
            package = write_package(runtime_named(one.runtime), own, one, folder, report)
        total = sum(entry.bytes for entry in package.files.values())
        say(f"{folder}: {len(package.files)} files, {size(total)}")
        said = Probes.load(folder).note
        if said:
            note(f"note: {said}")
    first, *others = (shlex.quote(str(folder)) for folder in wanted)
    say(f"next: bitfleet verify {' --beside '.join([first, *others])}")


def _for_runtimes(files: SupernetFiles, made: Plan, names: str, device: DeviceProfile, out: Path) -> dict[Path, Plan]:
    """The plan of the subnet for each of these runtimes that can load it, by the folder to write it to."""
    from planner.package import check_replaceable
    from planner.replan import replanned
    from planner.runtimes import RUNTIMES

    plans: dict[Path, Plan] = {}
    refused = []
    for name in RUNTIMES if names == ALL else dict.fromkeys(names.split(",")):
        runtime = runtime_named(name)
        try:
            plans[out / name] = made if name == made.runtime else replanned(files, made, runtime, device)
        except InputError as error:
            refused.append(str(error))
    for line in refused:
        note(f"note: {line}")
    if not plans:
        raise InputError(f"none of these runtimes can load the subnet of the plan; {refused[0]}")
    for folder in plans:
        check_replaceable(folder)
    return plans


@click.command()
@click.argument("package", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--supernet", metavar="DIR", help="Compare with the subnet in this supernet too, in full; needs torch.")
@click.option("--against", metavar="MODEL", help="Compare with this original model too, read anew; needs torch.")
@click.option("--allow-unchecked", is_flag=True, help="Exit 0 also where something promised could not be checked.")
@click.option(
    "--receipt",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write what was found on this machine, for `bitfleet fleet accept`; also where something is broken.",
)
@click.option("--device", metavar="NAME", help="Which of the package's devices this machine is: hold its promises.")
@click.option(
    "--beside",
    metavar="DIR",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Compare with another package of the same subnet too, of any runtime.",
)
@TRUST
@JSON
@click.pass_context
def verify(
    context: click.Context, package: Path, supernet: str | None, against: str | None, allow_unchecked: bool,
    receipt: Path | None, device: str | None, beside: tuple[Path, ...], trust: bool, as_json: bool,
) -> None:  # fmt: skip
    """Load a package in fresh processes and print what was limited and promised beside what was measured.

    Its answers are held to the proof that it carries; neither the supernet nor torch is needed for that.
    """
    from planner.fleet.receipts import not_loaded
    from planner.package import open_package
    from planner.verify import PROVES, verify

    opened = open_package(package)
    if device is not None:
        opened = opened.promised_to(device)
    elif len(opened.devices) > 1:
        note(f"note: made for {', '.join(opened.devices)}; held to what {opened.devices[0]} was promised (--device)")
    runtime = runtime_named(opened.plan.runtime)
    others = [(runtime_named(other.plan.runtime), other) for other in map(open_package, beside)]
    for loader, other in others:
        other.check(loader)
    if receipt is not None:
        check_file(receipt, RECEIPT, "--receipt")
    if supernet is not None or against is not None:
        require_training()
    try:
        with progress() as report:
            found = verify(runtime, package, report, supernet, against, trust, device, others=others)
    except (InputError, SystemFailure) as error:
        if receipt is not None:
            opened.check(runtime)  # of what is not whole, or may not be loaded, there is nothing to say
            _write_receipt(receipt, opened, runtime, not_loaded(f"{error}"), device)
        raise
    if receipt is not None:
        _write_receipt(receipt, opened, runtime, found.rows, device)
    if as_json:
        emit(found.to_json())
    else:
        print_rows(found.rows)
        say(PROVES)
        say(found.verdict)
    context.exit(OK if found.holds and (allow_unchecked or not found.unchecked) else BROKEN)


def _write_receipt(path: Path, package: Package, runtime: Runtime, rows: Sequence[Row], device: str | None) -> None:
    from planner.fleet.index import Device
    from planner.fleet.receipts import receipt_of
    from profiles.cpu import profile_cpu

    machine = Device.of(profile_cpu(measure_bandwidth=False))
    receipt_of(package, machine, runtime.versions(), rows, device or "").save(path)
    note(f"wrote {path}")


@click.command()
@click.argument("package", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens to generate.")
def run(package: Path, prompt: str, max_tokens: int) -> None:
    """Answer PROMPT with a package, as it is generated."""
    from planner.package import open_package

    opened = open_package(package)
    runtime = runtime_named(opened.plan.runtime)
    opened.check(runtime)
    engine = runtime.engine()
    if engine is None:
        command = runtime.packages.command(opened.path, opened.plan.workload, opened.plan.share)
        raise InputError(f"bitfleet runs no {runtime.name} package; start it with: {command}")
    for piece in engine.speaker(opened.path).generate(prompt, max_tokens):
        stream(piece)
        if reader_left():
            return
    stream("\n")
