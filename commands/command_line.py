"""The command line of this process as it is kept in a plan and shown: whoever reads it learns no password."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

STORAGE = "--storage"
# Up to the last @, as a password may have any character; a path, which begins with /, has none.
_USER = re.compile(r"(?<=://)[^/].*@", re.DOTALL)
_SAID = re.compile(r"(?<=[?&])(?:user|username|password|passwd)=[^&]*&?", re.IGNORECASE)


def command_line(arguments: Sequence[str]) -> str:
    """`bitfleet` with these `arguments`, quoted for a shell, without user and password of a storage's address."""
    shown = ["bitfleet"]
    for argument in arguments:
        option, equals, address = argument.partition("=")
        if shown[-1] == STORAGE:
            argument = _without_user(argument)
        elif equals and option == STORAGE:
            argument = f"{option}={_without_user(address)}"
        shown.append(argument)
    return shlex.join(shown)


def repeating(arguments: Sequence[str], steps: int) -> str:
    """The command line of these `arguments`, with steps of tuning in place of minutes, which may fit others."""
    given = iter(arguments)
    kept = []
    for argument in given:
        if argument in ("--tune", "--tune-steps"):
            next(given, None)
        elif not argument.startswith(("--tune=", "--tune-steps=")):
            kept.append(argument)
    return command_line([*kept, "--tune-steps", str(steps)])


def _without_user(address: str) -> str:
    return _SAID.sub("", _USER.sub("", address)).rstrip("?&")
