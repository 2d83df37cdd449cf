"""What can go wrong by nobody's bug. The command line maps each class to its exit code; all else is a bug."""

from __future__ import annotations


class InputError(ValueError):
    """What was given cannot be used, and the person can mend it: the rule, the value, the next step. Exit 2."""


class MissingError(InputError, FileNotFoundError):
    """Something that was named is not there. Exit 2."""


class BudgetError(Exception):
    """A budget that no subnet meets; the message names it and the smallest that can be met. Exit 3."""


class NotInstalledError(ImportError):
    """A library that this command needs is not there; the message says what to install. Exit 4."""


class SystemFailure(OSError):
    """The machine failed and not what was given: memory, disk, a child that was killed. Exit 5."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread as SIGINT is. Exit 143."""
