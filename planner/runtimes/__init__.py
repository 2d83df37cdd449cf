"""The runtimes a package can be made for."""

from planner.runtimes.base import Runtime
from planner.runtimes.llamacpp.runtime import LlamaCpp
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from records.errors import NotInstalledError

RUNTIMES: dict[str, type[Runtime]] = {"onnxruntime": OnnxRuntime, "llamacpp": LlamaCpp}
AUTO = "auto"
"""In place of a runtime's name: whichever loses least on the device."""


def installed() -> tuple[tuple[Runtime, ...], dict[str, str]]:
    """The runtimes whose packages are here, and for each of the others what to install."""
    found, missing = [], dict[str, str]()
    for name, member in RUNTIMES.items():
        try:
            member().engine()
        except NotInstalledError as error:
            missing[name] = str(error)
        else:
            found.append(member())
    return tuple(found), missing


def able(kind: str) -> tuple[tuple[Runtime, ...], dict[str, str]]:
    """The installed runtimes that run on a kind of device, and for each of the others why not."""
    found, refused = installed()
    here = tuple(runtime for runtime in found if kind in runtime.device_kinds)
    others = {one.name: f"it runs on {' and '.join(one.device_kinds)}" for one in found if one not in here}
    return here, others | refused
