"""bitfleet delta and apply: a new package for a device that has an older one."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from commands.names import runtime_named
from commands.terminal import JSON, emit, say, table
from commands.waiting import progress
from planner.amounts import size
from records.atomic import check_output

FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("old", type=FOLDER)
@click.argument("new", type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="The delta's folder; it appears whole.")
@JSON
def delta(old: Path, new: Path, out: Path, as_json: bool) -> None:
    """Write what the package NEW has and the package OLD lacks: changed tensors alone.

    `bitfleet apply OLD DELTA --out NEW` puts NEW together where OLD is, to the last bit.
    """
    from planner.delta import write_delta
    from planner.package import open_package

    check_output(out, folder=True)
    first, second = open_package(old), open_package(new)
    with progress() as report:
        made = write_delta(runtime_named(first.plan.runtime), first, second, out, report)
    if as_json:
        said = {"delta_bytes": made.bytes, "package_bytes": made.package_bytes, "tensors": made.tensors}
        emit({"out": str(out), **said, "changed": made.changed})
        return
    say(f"{len(made.changed)} of {made.tensors} tensors changed")
    share = f"{made.bytes / made.package_bytes:.1%}"
    say(f"{out}: {size(made.bytes)}, {share} of the new package's {size(made.package_bytes)}")
    say(f"next: bitfleet apply {shlex.quote(str(old))} {shlex.quote(str(out))} --out DIR")


@click.command()
@click.argument("old", type=FOLDER)
@click.argument("delta", type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="The new package's folder; it appears whole, OLD may be it.")
def apply(old: Path, delta: Path, out: Path) -> None:
    """Put a new package together from the package OLD and a DELTA of it, to the last bit or not at all."""
    from planner.delta import apply_delta

    check_output(out, folder=True)
    with progress() as report:
        made = apply_delta(old, delta, out, report)
    table(("FILE", "SIZE"), [(name, size(entry.bytes)) for name, entry in made.files.items()])
    say(f"{out}: {len(made.files)} files, {size(sum(entry.bytes for entry in made.files.values()))}")
    say(f"next: bitfleet verify {shlex.quote(str(out))}")
