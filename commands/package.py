"""bitfleet export, verify and run: the package of a plan, its promises, its answers."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from commands.exits import BROKEN, OK
from commands.names import runtime_named
from commands.reports import print_verified
from commands.streams import reader_left
from commands.terminal import JSON, TRUST, emit, say, size, stream
from commands.waiting import progress
from records.atomic import check_output
from records.errors import MissingError
from records.installed import require_training


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The package's folder; it appears whole.")
@click.option("--supernet", metavar="DIR", help="Where the supernet lies now; the default is where it was planned.")
@TRUST
def export(plan: Path, out: Path, supernet: str | None, trust: bool) -> None:
    """Write the package of a plan: what the runtime loads, the tokenizer, and a manifest."""
    from planner.package import check_replaceable, write_package
    from planner.plan import Plan
    from supernet.checkpoint import SUPERNET, open_supernet

    made = Plan.load(plan)
    check_output(out, folder=True)
    check_replaceable(out)
    if supernet is None and not (Path(made.supernet) / SUPERNET).is_file():
        raise MissingError(
            f"no supernet at {made.supernet}, where {plan} was made; say where it is now: --supernet DIR"
        )
    require_training()
    files = open_supernet(supernet or made.supernet, trust_remote_code=trust)
    with progress() as report:
        package = write_package(runtime_named(made.runtime), files, made, out, report)
    total = sum(entry.bytes for entry in package.files.values())
    say(f"{out}: {len(package.files)} files, {size(total)}")
    say(f"next: bitfleet verify {shlex.quote(str(out))}")


@click.command()
@click.argument("package", metavar="DIR", type=click.Path(path_type=Path))
@JSON
@click.pass_context
def verify(context: click.Context, package: Path, as_json: bool) -> None:
    """Load a package in a fresh process, measure it, and print what was promised beside what was measured."""
    from planner.package import open_package
    from planner.verify import verify

    runtime = runtime_named(open_package(package).plan.runtime)
    with progress() as report:
        found = verify(runtime, package, report)
    if as_json:
        emit(found.to_json())
    else:
        print_verified(found)
        say("every promise that could be checked holds" if found.holds else "a promise is broken")
    context.exit(OK if found.holds else BROKEN)


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
    for piece in runtime.generate(opened.path, prompt, max_tokens):
        stream(piece)
        if reader_left():
            return
    stream("\n")
