"""bitfleet fleet accept: what was measured of an export's packages where they landed, and what still is a promise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands.exits import BROKEN, OK
from commands.terminal import JSON, emit, say, table
from planner.amounts import amount

if TYPE_CHECKING:
    from planner.fleet.index import Index


@click.command("accept")
@click.argument("dist", type=click.Path(path_type=Path))
@click.argument("receipts", nargs=-1, type=click.Path(path_type=Path))
@click.option("--require", is_flag=True, help="Exit 1 unless everything promised is measured, and kept.")
@JSON
@click.pass_context
def accept(context: click.Context, dist: Path, receipts: tuple[Path, ...], require: bool, as_json: bool) -> None:
    """Fill the slots of DIST/index.json from RECEIPTS of `bitfleet verify PACKAGE --receipt FILE`.

    A receipt is of exactly the files that the index lists, or it is refused. Whether a package loads, and its KL, count
    from any machine, memory from the architecture of the device, and a time from the device alone.
    """
    from planner.fleet.index import INDEX, Index
    from planner.fleet.page import write_page
    from planner.fleet.receipts import Receipt, open_slots
    from planner.fleet.receipts import accept as accepted
    from records.lock import locked

    read = [Receipt.load(path) for path in receipts]
    index = Index.load(dist / INDEX)
    if read:
        with locked(dist / INDEX, "another accept"):
            index = accepted(Index.load(dist / INDEX), read)
            index.save(dist)
            write_page(index, dist)
    left = [(slot, line) for slot, line in open_slots(index)]
    if as_json:
        emit({"index": index.to_json(), "open": [line for _, line in left], "complete": not left})
    else:
        print_slots(index)
        say()
        for _, line in left:
            say(line)
        say(
            "every promise is measured and kept"
            if not left
            else f"{len(left)} of {len(index.slots)} slots are open or broken"
        )
    context.exit(BROKEN if require and left else OK)


def print_slots(index: Index) -> None:
    rows = [
        (
            slot.package,
            slot.device,
            slot.check,
            *(amount(value, slot.unit) for value in (slot.limit, slot.promised, slot.measured)),
            f"+{slot.band:.0%}" if slot.band else "",
            slot.state,
            slot.receipt.machine.model if slot.receipt else "",
        )
        for slot in index.slots
    ]
    table(("PACKAGE", "DEVICE", "CHECK", "LIMIT", "PROMISED", "MEASURED", "BAND", "", "ON"), rows)
