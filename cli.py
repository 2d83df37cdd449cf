"""bitfleet's command line: parse, call one function, print. The only place that maps names to instances.

Data goes to stdout; progress, notes and errors go to stderr. What a command needs is imported inside it, so that
`--help` and planning on cached numbers start without the heavy libraries.
"""

from __future__ import annotations

import errno
import json
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from planner.plan import Plan
    from planner.runtimes.base import Runtime
    from profiles.device import DeviceProfile
    from supernet.checkpoint import SupernetFiles

__version__ = "0.1.0"

OK, BROKEN, BAD_INPUT, OVER_BUDGET, NOT_INSTALLED, SYSTEM, BUG, INTERRUPTED = 0, 1, 2, 3, 4, 5, 70, 130
EPILOG = """\b
Exit codes:
  0    ok
  1    a promise is broken (verify), or a check failed (doctor)
  2    bad input: an unknown option, a missing or corrupt file, a value out of range
  3    a budget cannot be met; the message names the smallest that can
  4    something is not installed; the message says what to install
  5    the system failed: disk full, out of memory, I/O
  70   a bug in bitfleet
  130  interrupted; what was finished is kept
"""
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="bitfleet")
@click.option("--debug", is_flag=True, help="Show tracebacks and the libraries' warnings.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Train one quantized language model; ship the best fit to every device."""
    context.obj["debug"] = debug
    if not debug:
        warnings.filterwarnings("ignore")


# --- what a device is ---------------------------------------------------------------------------------------------


@cli.group()
def profile() -> None:
    """What a device is and how fast its runtime's kernels are on it."""


@profile.command("device")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda:N", help="What to profile.")
@click.option("--quick", is_flag=True, help="Fewer shapes and repeats: under a minute, wider error bands.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the profile; the default is the cache.")
@JSON
def profile_device(device: str, quick: bool, out: Path | None, as_json: bool) -> None:
    """Measure this machine and write its profile."""
    path = out or own_profile_path()
    found = measure_device(device, quick, path)
    if as_json:
        return emit(found.to_json())
    print_device(found)
    note(f"wrote {path}")


@profile.command("list")
@JSON
def profile_list(as_json: bool) -> None:
    """The catalogue of devices that a plan can be made for."""
    from profiles.catalog import load, names

    entries = [load(name) for name in names()]
    if as_json:
        return emit([entry.to_json() for entry in entries])
    rows = [(e.name, e.kind, size(e.memory_bytes), rate(e.bandwidth_bytes_per_s), e.model) for e in entries]
    table(("NAME", "KIND", "MEMORY", "BANDWIDTH", "MODEL"), rows)


@profile.command("show")
@click.argument("name", metavar="NAME|FILE")
@JSON
def profile_show(name: str, as_json: bool) -> None:
    """One device, from the catalogue or from a file."""
    found = device_named(name)
    if as_json:
        return emit(found.to_json())
    print_device(found)


# --- the supernet -------------------------------------------------------------------------------------------------


# --- plans and packages -------------------------------------------------------------------------------------------


@cli.command()
@JSON
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """What works on this machine, the fix for what does not, and the next command."""
    from planner.doctor import diagnose

    report = diagnose(cache_dir())
    if as_json:
        emit(report.to_json())
    else:
        table(("", "CHECK", "FOUND"), [(c.status, c.name, c.detail) for c in report.checks])
        for check in report.checks:
            if check.fix:
                click.echo(f"fix for {check.name}: {check.fix}")
        click.echo(f"next: {report.next_command}")
    context.exit(BROKEN if report.failed else OK)


# --- printing -----------------------------------------------------------------------------------------------------


def emit(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, allow_nan=False))


def note(text: str) -> None:
    """A line for the person at the terminal; never part of the data."""
    click.echo(text, err=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their longest cell; the header is bold on a terminal and plain in a pipe."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for number, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        click.echo(click.style(text, bold=True) if number == 0 else text)


def size(count: int | float | None) -> str:
    """Bytes as people read them: 1 MB is 10^6 bytes, as in the memory strings that `--mem` takes."""
    if count is None:
        return "-"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def rate(bytes_per_s: float | None) -> str:
    return "-" if bytes_per_s is None else f"{bytes_per_s / 1e9:.0f} GB/s"


@contextmanager
def progress() -> Iterator[Any]:
    """Gives `report(what, done, total=1.0)`: a bar on a terminal; elsewhere a line for each stage and each tenth."""
    if not sys.stderr.isatty():
        yield plain_report()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: float, total: float = 1.0) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


def plain_report() -> Any:
    said: dict[str, int] = {}

    def report(what: str, done: float, total: float = 1.0) -> None:
        tenth = int(10 * done / total) if total else 10
        if said.get(what) != tenth:
            said[what] = tenth
            note(f"{what}: {10 * tenth} %")

    return report


# --- errors -------------------------------------------------------------------------------------------------------


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the one line of an error."""
    text = " ".join(str(error).split())
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "bitfleet"
        return BAD_INPUT, f"{' '.join(error.format_message().split())} See: {command} --help"
    if isinstance(error, click.ClickException):
        return BAD_INPUT, error.format_message()
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED, "interrupted; nothing half-written is left behind"
    if isinstance(error, ImportError):
        missing = isinstance(error, ModuleNotFoundError) and text.startswith("No module named")
        return NOT_INSTALLED, f"{text}; run: bitfleet doctor" if missing else text
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        text = f"{error.strerror}: {error.filename}"
    if isinstance(error, (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)):
        return BAD_INPUT, text
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return SYSTEM, f"{text}; free some space or choose another --out" if full else text
    if isinstance(error, MemoryError):
        return SYSTEM, "out of memory; close programs or use a smaller model"
    if isinstance(error, ValueError):
        from planner.plan import BudgetError

        return (OVER_BUDGET if isinstance(error, BudgetError) else BAD_INPUT), text
    return BUG, f"{type(error).__name__}: {text}; this is a bug in bitfleet, bitfleet --debug shows where"


def main(arguments: Sequence[str] | None = None) -> None:
    """The one place where errors become a line on stderr and an exit code."""
    settings = {"debug": False}
    try:
        code = cli.main(arguments, prog_name="bitfleet", standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        sys.stderr.close()
        code = OK
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if settings["debug"]:
            traceback.print_exc()
        code, line = explain(error)
        note(f"error: {line}")
    sys.exit(code if isinstance(code, int) else OK)


if __name__ == "__main__":
    main()
