"""bitfleet doctor: what works on this machine."""

from __future__ import annotations

import click

from commands.exits import BROKEN, OK
from commands.names import default_supernet_path, own_profile_path
from commands.terminal import JSON, emit, say, table
from records.cache import cache_dir


@click.command()
@JSON
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """What works on this machine, the fix for what does not, and the next command."""
    from planner.doctor import diagnose

    report = diagnose(cache_dir(), own_profile_path(), default_supernet_path())
    if as_json:
        emit(report.to_json())
    else:
        table(("", "CHECK", "FOUND"), [(c.status, c.name, c.detail) for c in report.checks])
        for check in report.checks:
            if check.fix:
                say(f"fix for {check.name}: {check.fix}")
        say(f"next: {report.next_command}")
    context.exit(BROKEN if report.failed else OK)
