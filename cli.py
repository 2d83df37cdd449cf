"""bitfleet's command line: joins the groups of commands, and turns every error into one line and an exit code.

What a command needs is imported inside it, so that `--help` and planning on cached numbers start without the heavy
libraries.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import click

from commands.delta import apply, delta
from commands.doctor import doctor
from commands.evaluate import evaluate
from commands.exits import BAD_INPUT, EPILOG, OK, explain
from commands.fleet import fleet
from commands.package import export, run, verify
from commands.plan import plan
from commands.profile import profile
from commands.show import show
from commands.streams import lost, secure
from commands.terminal import note
from commands.train import train
from records.errors import SystemFailure
from records.signals import asked_to_stop, stoppable

__version__ = "0.1.0"


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="bitfleet")
@click.option("--debug", is_flag=True, help="Show tracebacks and the libraries' warnings.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Train one quantized language model; ship the best fit to every device."""
    context.obj["debug"] = debug
    if not debug:
        warnings.filterwarnings("ignore")


for command in (profile, train, evaluate, plan, show, fleet, export, delta, apply, verify, run, doctor):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The one place where errors become a line on stderr and an exit code."""
    secure()
    with stoppable():
        code = outcome(sys.argv[1:] if arguments is None else arguments)
    sys.exit(code)


def outcome(arguments: Sequence[str]) -> int:
    settings = {"debug": False}
    try:
        code = invoke(arguments, settings)
        if failure := lost():
            raise SystemFailure(f"stdout cannot be written ({failure.strerror}); free some space or write elsewhere")
    except click.exceptions.NoArgsIsHelpError as error:
        note(error.format_message(), keep="\n")
        code = BAD_INPUT
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if settings["debug"]:
            import traceback

            note(traceback.format_exc(), keep="\n")
        code, line = explain(asked_to_stop() or error)
        note(f"error: {line}")
    return code


def invoke(arguments: Sequence[str], settings: dict[str, bool]) -> int:
    """Run one command. Click's own `main` would end with 1 where the reader of stdout has left."""
    try:
        with cli.make_context("bitfleet", list(arguments), obj=settings) as context:
            cli.invoke(context)
    except click.exceptions.Exit as left:
        return left.exit_code
    return OK


if __name__ == "__main__":
    main()
