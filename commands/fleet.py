"""bitfleet fleet: many devices in one file, the fewest packages that serve them, and their export."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands.command_line import command_line
from commands.exits import BROKEN, OK, OVER_BUDGET
from commands.fleet_accept import accept
from commands.measuring import measured_caches, measured_quality
from commands.minutes import Minutes
from commands.names import default_supernet, own_device, runtime_named, trained_supernet
from commands.outputs import PAGE, check_file
from commands.terminal import JSON, TRUST, emit, note, say, stream, table
from commands.tuning import asked_to_tune, check_tuning, tuner
from commands.waiting import progress
from planner.amounts import milliseconds, size
from planner.rows import BROKEN as ROW_BROKEN
from records.dates import made_now
from records.errors import InputError, SystemFailure
from records.installed import require_training

if TYPE_CHECKING:
    from planner.fleet.index import Index, Listed
    from planner.fleet.plan import FleetPlan, Member
    from planner.fleet.receipts import Receipt
    from planner.plan import Plan
    from planner.runtimes.base import Runtime
    from profiles.device import DeviceProfile
    from supernet.checkpoint import SupernetFiles


class _Fleet(click.Group):
    """`fleet FILE` and `fleet accept`: what is no command's name belongs to the planning of a file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args[:1] == ["accept"] else ["", *args])


class _Plain(click.Command):
    """A command without a name of its own."""

    def get_usage(self, ctx: click.Context) -> str:
        return " ".join(super().get_usage(ctx).split())


@click.group(cls=_Fleet)
def fleet() -> None:
    """Plan many devices at once, and export the packages that they share."""


fleet.add_command(accept)


def _share(context: click.Context, option: click.Parameter, value: str) -> float:
    try:
        share = float(value.strip().removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share <= 10:
        raise InputError(f"--allow must be a share such as 2%, got {value!r:.80}")
    return share


@fleet.command("", cls=_Plain)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--supernet", metavar="DIR", help="Where the supernet is; the default is what FILE says.")
@click.option("--example", is_flag=True, help="Print a commented file that works as it is.")
@click.option("--export", "dist", metavar="DIR", type=click.Path(path_type=Path), help="Write packages and an index.")
@click.option("--verify", is_flag=True, help="With --export: verify the packages that this machine can run.")
@click.option("--baseline", metavar="INDEX", type=click.Path(path_type=Path),
              help="With --export: exit 1 where a device got worse, bigger or slower than in this index.")  # fmt: skip
@click.option("--allow", default="2%", show_default=True, callback=_share, help="By so much it may, with --baseline.")
@click.option("--html", "page", metavar="FILE", type=click.Path(path_type=Path), help="Write the export's page here.")
@click.option("--predict", is_flag=True, help="Choose by predicted losses, and measure nothing.")
@click.option("--trials", type=click.IntRange(min=0), default=0, show_default=True,
              help="Subnets that the search tries beyond the exact solution.")  # fmt: skip
@click.option("--tune", type=Minutes(), metavar="M", help="Train the scales of each package's subnet alone, so long.")
@click.option("--tune-steps", type=click.IntRange(min=1), metavar="N", help="The same in so many steps.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@TRUST
@JSON
@click.pass_context
def plan(
    context: click.Context, file: Path | None, supernet: str | None, example: bool, dist: Path | None, verify: bool,
    baseline: Path | None, allow: float, page: Path | None, predict: bool, trials: int, tune: float | None,
    tune_steps: int | None, seed: int, trust: bool, as_json: bool,
) -> None:  # fmt: skip
    """Plan every device in FILE, and the fewest packages that serve each nearly as well as its own best.

    A device that cannot be served is said with its smallest budget, and the others go on; the exit code is 3 then. It
    is 1 where a promise is broken, or worse than --baseline allows.
    `bitfleet fleet accept` fills in what was measured where the packages landed.
    """
    from planner.fleet.export import check_folder
    from planner.fleet.fleetfile import EXAMPLE, read_fleet
    from planner.fleet.index import Index
    from planner.fleet.plan import plan_fleet
    from planner.fleet.tune import tuned

    if example:
        stream(EXAMPLE)
        return
    if file is None:
        raise InputError("FILE is missing; `bitfleet fleet --example > fleet.toml` makes one")
    if dist is None and (verify or baseline or page):
        raise InputError("--verify, --baseline and --html are of an export; give --export DIR")
    tunes = asked_to_tune(tune, tune_steps)
    if tunes and predict:
        raise click.UsageError("--tune is judged by measuring, --predict measures nothing: give one of them.")
    made_now()  # a wrong SOURCE_DATE_EPOCH is said now, and not after the work
    before = None if baseline is None else Index.load(baseline)
    if page is not None:
        check_file(page, PAGE, "--html")
    if dist is not None:
        check_folder(dist)
        require_training()
    asked = read_fleet(file, own_device)
    where = supernet or asked.supernet
    files = default_supernet() if where is None else trained_supernet(where, trust)
    if tunes:
        check_tuning(files)
    load = cache(files.load)
    measure = None if predict else measured_quality(files, None, trust, load)
    losses = None if predict else measured_caches(files, load)
    command = command_line(sys.argv[1:])
    with progress() as report:
        made = plan_fleet(files, asked, runtime_named, measure, trials, seed, command, report, losses)
    del measure, losses, load  # and the supernet that it holds: exports side by side need the room
    if tunes:
        made = tuned(made, tuner(files, tune, tune_steps, seed, None, trust), _said)
    index, broken = None, False
    if dist is not None:
        index, broken = _exported(made, files, dist, before, allow, verify, page)
    if as_json:
        emit(_to_json(made) | ({} if index is None else {"index": index.to_json()}))
    else:
        print_fleet(made)
        if index is not None:
            _print_export(index, dist or Path(), before is not None)
    worse = index is not None and (any(d.worse for d in index.differences) or any(s.broken for s in index.slots))
    context.exit(BROKEN if worse or broken else OVER_BUDGET if made.refused else OK)


def _said(number: int, of: int, names: str) -> None:
    note(f"tuning subnet {number} of {of}, of {names}")


def _exported(
    made: FleetPlan,
    files: SupernetFiles,
    dist: Path,
    before: Index | None,
    allow: float,
    verify: bool,
    page: Path | None,
) -> tuple[Index, bool]:
    """Packages, index, checksums and page; and whether something was found broken that no slot is for."""
    from dataclasses import replace

    from planner.fleet.compare import compared
    from planner.fleet.export import check_names, index_of, left_over, write_packages, write_sums
    from planner.fleet.index import INDEX
    from planner.fleet.page import page as html
    from planner.fleet.page import write_page
    from planner.fleet.receipts import accept as accepted
    from planner.fleet.receipts import kept
    from records.atomic import write_text
    from records.lock import locked

    def save(index: Index) -> None:
        index.save(dist)
        write_page(index, dist)
        if page is not None:
            write_text(page, html(index))

    check_names(made, dist)
    dist.mkdir(parents=True, exist_ok=True)
    broken = False
    with locked(dist / INDEX, "another export"):
        with progress() as report:
            written = write_packages(made, files, runtime_named, dist, report, note)
        note(f"wrote {_count(len(written), 'package')}, {len(made.packages) - len(written)} were there")
        index = index_of(made, files, runtime_named, dist)
        index = kept(index, _measured_before(dist))
        if before is not None:
            index = replace(index, differences=compared(index, before, allow))
        save(index)  # before the rest, which may be stopped: the packages are there
        write_sums(index, dist)
        if verify:
            receipts, broken = _verified(index, dist)
            index = accepted(index, receipts)
            save(index)
    for name in left_over(index, dist):
        note(f"note: {dist / name} is no package of this fleet; remove it where nobody needs it")
    return index, broken


def _measured_before(dist: Path) -> Index | None:
    """The index of the last export into `dist`, whose receipts are still good where nothing changed."""
    from planner.fleet.index import INDEX, Index

    try:
        return Index.load(dist) if (dist / INDEX).exists() else None
    except InputError as error:
        note(f"note: what was measured is not kept: {error}")
        return None


def _verified(index: Index, dist: Path) -> tuple[list[Receipt], bool]:
    """A receipt of this machine for each package that it can run, and whether the one promise is broken that no slot is
    for."""
    from planner.fleet.index import Device
    from planner.fleet.receipts import FIRST, not_loaded, receipt_of
    from planner.package import open_package
    from planner.verify import verify
    from profiles.cpu import profile_cpu

    here = profile_cpu(measure_bandwidth=False)
    machine, found, broken = Device.of(here), [], False
    for package in index.packages:
        runtime = runtime_named(package.runtime)
        if why := _cannot_run(runtime, package, here):
            note(f"not verified here: {package.name}: {why}")
            continue
        opened = open_package(dist / package.name)
        own = [device.name for device in index.devices if device.package == package.name
               and device.device.model == machine.model]  # fmt: skip
        note(f"verifying {package.name}")
        try:
            with progress() as report:
                rows = verify(runtime, opened.path, report, device=own[0] if own else None, elsewhere=not own).rows
        except (InputError, SystemFailure) as error:
            rows = not_loaded(f"{error}")
        for row in rows:
            if row.verdict == ROW_BROKEN and row.name == FIRST:
                note(f"{package.name}: {row.name} is broken{f': {row.note}' if row.note else ''}")
                broken = True
        found.append(receipt_of(opened, machine, runtime.versions(), rows, own[0] if own else ""))
    return found, broken


def _cannot_run(runtime: Runtime, package: Listed, machine: DeviceProfile) -> str:
    if machine.kind not in runtime.device_kinds:
        return f"it runs on {' and '.join(runtime.device_kinds)}"
    needs = sum(item.bytes for item in (*package.memory, *package.host_memory))
    if needs > machine.usable_bytes:
        return f"it takes {size(needs)} of memory, this machine has {size(machine.usable_bytes)}"
    return ""


def print_fleet(made: FleetPlan) -> None:
    """A row a device, then a row a package, then those that cannot be served."""
    takes = {member.wanted.name: package.name for package in made.packages for member in package.members}
    rows = [_device_row(member, takes[member.wanted.name]) for member in made.members if member.plan is not None]
    if rows:
        table(*_without_empty(_DEVICE, rows))
        say()
        packages = []
        for package in made.packages:
            first = next(iter(package.plans.values()))
            shown = size(first.chosen.disk_bytes), f"{first.chosen.mean_bits:.2f}", ", ".join(package.plans)
            packages.append((package.name, *shown))
        table(("PACKAGE", "WEIGHTS", "MEAN BITS", "FOR"), packages)
        proven = "proven the fewest of those proposed" if made.gap == 0 else f"fewer may do, by up to {made.gap:.0%}"
        served = len(made.members) - len(made.refused)
        say()
        within = f"each within {100 * made.max_loss:.3g} % of its best"
        say(f"{_count(len(made.packages), 'package')} for {_count(served, 'device')}, {within}: {proven}")
    for name, line in made.absent.items():
        say(f"note: {name} is not here, devices that name no runtime are planned without it: {line}")
    for package in made.packages:
        for line in _own_scales(next(iter(package.plans.values()))):
            say(f"note: {package.name}: {line}")
    for member in made.members:
        for line in _lessened(member):
            say(f"note: {member.wanted.name}: {line}")
    for member in made.refused:
        say(f"not served: {member.wanted.name}: {member.refused}")


def _own_scales(made: Plan) -> Iterator[str]:
    """What tuning came to, where it was asked for."""
    from planner.plan import NOT_TUNED
    from planner.summary import tuned

    yield from filter(None, [tuned(made)])
    yield from (line for line in made.notes if line.startswith(NOT_TUNED))


def _lessened(member: Member) -> tuple[str, ...]:
    """What of the budget the device, or its host, does not have."""
    from dataclasses import replace

    from planner.frame import limits_on

    if member.plan is None:
        return ()
    made, device = member.plan, replace(member.wanted.profile, name=member.wanted.name)
    runtime, hosted = runtime_named(made.runtime), made.limits.host_memory_bytes is not None
    return limits_on(made.budget, device, hosted, runtime, made.workload.gpus)[1]


def _without_empty(
    header: tuple[str, ...], rows: list[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table without the columns that say nothing of anything in it."""
    kept = [number for number in range(len(header)) if any(row[number] for row in rows)]
    return tuple(header[number] for number in kept), [tuple(row[number] for number in kept) for row in rows]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


_DEVICE = (
    "DEVICE", "PACKAGE", "MEMORY", "LIMIT", "HOST MEMORY", "HOST LIMIT", "LAYERS ON GPU", "GPUS", "CONTEXT",
    "TIME PER TOKEN", "KL", "OWN BEST",
)  # fmt: skip
"""Of what no device has anything, there is no column."""


def _device_row(member: Member, package: str) -> tuple[str, ...]:
    from planner.request import ContextRange

    assert member.plan is not None
    chosen = member.plan.chosen
    over = member.kl / member.best_kl - 1 if member.best_kl > 0 else 0.0
    best = f"{member.best_kl:.4g}" + (f" ({over:+.1%})" if over > 0 else "")
    limits, placed, asked = member.plan.limits, member.plan.placement, member.wanted.asked.context
    hosted = "host" in member.plan.device
    return (
        member.wanted.name, package, size(chosen.memory_bytes), size(limits.memory_bytes),
        "" if chosen.host_bytes is None else size(chosen.host_bytes),
        "" if limits.host_memory_bytes is None else size(limits.host_memory_bytes),
        f"{placed['gpu_layers']} of {placed['layers']}" if placed is not None and hosted else "",
        f"{member.workload.gpus}" if member.workload.gpus > 1 else "",
        f"{member.workload.context}" if isinstance(asked, ContextRange) else "",
        milliseconds(chosen.tpot_ms), f"{member.kl:.4g}", best,
    )  # fmt: skip


def _print_export(index: Index, dist: Path, compared: bool) -> None:
    from planner.fleet.receipts import open_slots

    say()
    for difference in index.differences:
        say(difference.line)
    if compared and not index.differences:
        say("no difference from the baseline beyond what is allowed")
    for slot, line in open_slots(index):
        if slot.broken:
            say(line)
    total = sum(package.bytes for package in index.packages)
    left = sum(1 for _ in open_slots(index))
    say(f"{dist}: {_count(len(index.packages), 'package')}, {size(total)}; index.json, SHA256SUMS, index.html")
    if left:
        next_step = "bitfleet verify PACKAGE --receipt FILE, where it landed"
        say(f"{left} of {len(index.slots)} checks are still promises: {next_step}")


def _to_json(made: FleetPlan) -> dict[str, Any]:
    takes = {member.wanted.name: package.name for package in made.packages for member in package.members}
    return {
        "max_loss": made.max_loss,
        "proven": made.gap == 0,
        "gap": made.gap,
        "problems": made.problems,
        "absent": dict(made.absent),
        "devices": [
            {
                "name": member.wanted.name,
                "package": takes.get(member.wanted.name),
                "refused": member.refused,
                **(
                    {}
                    if member.plan is None
                    else {"kl": member.kl, "best_kl": member.best_kl, "plan": member.plan.to_json()}
                ),
            }
            for member in made.members
        ],
        "packages": [{"name": package.name, "devices": list(package.plans)} for package in made.packages],
    }
