"""bitfleet show: a plan as it was printed, two plans side by side, a plan as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands.outputs import PAGE, check_file
from commands.reports import print_differences, print_plan, print_receipt, write_card
from commands.terminal import JSON, emit
from records.errors import InputError

if TYPE_CHECKING:
    from planner.fleet.receipts import Receipt
    from planner.plan import Plan


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("other", required=False, type=click.Path(path_type=Path))
@click.option(
    "--receipt",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="What `verify --receipt` measured of its package.",
)
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write one page of PLAN, to look at.")
@JSON
def show(plan: Path, other: Path | None, receipt: Path | None, html: Path | None, as_json: bool) -> None:
    """A plan again as it was printed; with OTHER, two plans side by side and the bits in which they differ.

    PLAN and OTHER are files that `bitfleet plan` wrote, or packages, which hold theirs.
    """
    from planner.differences import differences

    if other is not None and (html is not None or receipt is not None):
        raise click.UsageError("--html and --receipt are of one plan, two were given: leave OTHER out.")
    made = _planned(plan)
    if other is not None:
        found = differences(made, _planned(other))
        if as_json:
            emit({"plans": [str(plan), str(other)], **found.to_json()})
        else:
            print_differences(found, (str(plan), str(other)))
        return
    measured = None if receipt is None else _receipt(receipt, made, plan)
    if html is not None:
        check_file(html, PAGE, "--html")
        write_card(html, made, measured)
    if as_json:
        emit(made.to_json())
    else:
        print_plan(made)
        if measured is not None:
            print_receipt(measured)


def _planned(path: Path) -> Plan:
    """The plan in a file, or of the package in a folder."""
    from planner.package import open_package
    from planner.plan import Plan

    return open_package(path).plan if path.is_dir() else Plan.load(path)


def _receipt(path: Path, made: Plan, plan: Path) -> Receipt:
    """InputError for a receipt of a package with other promises than the plan's."""
    from planner.fleet.receipts import Receipt
    from planner.rows import PEAK_MEMORY

    found = Receipt.load(path)
    row = next((row for row in found.rows if row.name == PEAK_MEMORY), None)
    if row is not None and row.promised != made.chosen.memory_bytes:
        raise InputError(
            f"a receipt must be of the plan's package, that in {path} was promised {row.promised:.0f} bytes of peak "
            f"memory, {plan} promises {made.chosen.memory_bytes}; give the receipt that `verify` wrote for it"
        )
    return found
