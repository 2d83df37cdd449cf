"""bitfleet's command line: joins the groups of commands, and turns every error into one line and an exit code.

What a command needs is imported inside it, so that `--help` and planning on cached numbers start without the heavy
libraries.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence

import click

from commands.doctor import doctor
from commands.evaluate import evaluate
from commands.exits import BAD_INPUT, EPILOG, OK, explain
from commands.package import export, run, verify
from commands.plan import plan
from commands.profile import profile
from commands.terminal import note
from commands.train import train

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


for command in (profile, train, evaluate, plan, export, verify, run, doctor):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The one place where errors become a line on stderr and an exit code."""
    settings = {"debug": False}
    try:
        code = cli.main(arguments, prog_name="bitfleet", standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        sys.stderr.close()
        code = OK
    except click.exceptions.NoArgsIsHelpError as error:
        note(error.format_message())
        code = BAD_INPUT
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
