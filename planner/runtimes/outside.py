"""Runtimes that other installed packages bring: entry points of the group `bitfleet.runtimes`.

    [project.entry-points."bitfleet.runtimes"]
    mine = "mine.runtime:Mine"

One that cannot be loaded is left out, with a line that says why, and none of the others goes with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Container
from importlib.metadata import EntryPoint, entry_points

from planner.runtimes.base import Runtime
from records.errors import InputError

GROUP = "bitfleet.runtimes"


def members(taken: Container[str]) -> tuple[dict[str, type[Runtime]], dict[str, str]]:
    """Runtimes by name, none of them `taken`, and the line for each that could not be loaded."""
    found: dict[str, type[Runtime]] = {}
    broken: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            if point.name in taken or point.name in found:
                raise InputError("the name is another runtime's")
            found[point.name] = _loaded(point)
        except (Exception, SystemExit) as error:  # of code that is not ours
            said = " ".join(str(error).split()) or "no message"
            broken[point.name] = (
                f"the runtime {point.name} of {_origin(point)} cannot be loaded: {type(error).__name__}, {said:.200}; "
                "mend or uninstall it"
            )
    return found, broken


def _loaded(point: EntryPoint) -> type[Runtime]:
    member = point.load()
    if not (isinstance(member, type) and issubclass(member, Runtime)):
        raise InputError(f"{point.value} is no planner.runtimes.base.Runtime")
    if lacking := sorted(member.__abstractmethods__) if inspect.isabstract(member) else []:
        raise InputError(f"{point.value} lacks {', '.join(lacking)}")
    if getattr(member, "name", None) != point.name:
        raise InputError(f"{point.value} calls itself {getattr(member, 'name', None)!r:.80}")
    return member


def _origin(point: EntryPoint) -> str:
    return "an installed package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
