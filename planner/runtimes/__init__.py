"""The runtimes a package can be made for: bitfleet's own, and those of other packages that are installed."""

from dataclasses import dataclass

from planner.runtimes.base import Runtime
from planner.runtimes.llamacpp.runtime import LlamaCpp
from planner.runtimes.mlx.runtime import Mlx
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.outside import members
from planner.runtimes.vllm.runtime import Vllm
from profiles.device import DeviceProfile
from records.errors import NotInstalledError

OWN: dict[str, type[Runtime]] = {"onnxruntime": OnnxRuntime, "llamacpp": LlamaCpp, "vllm": Vllm, "mlx": Mlx}
OUTSIDE, BROKEN = members(OWN)
"""Runtimes of other packages, and why those that could not be loaded are left out; by name."""
RUNTIMES: dict[str, type[Runtime]] = {**OWN, **OUTSIDE}
AUTO = "auto"
"""In place of a runtime's name: whichever loses least on the device."""


@dataclass(frozen=True)
class Installed:
    """The runtimes that are here or of which bitfleet runs nothing, and for each of the others what to install or to
    mend, by name."""

    found: tuple[Runtime, ...]
    missing: dict[str, str]

    def on(self, device: DeviceProfile) -> "Installed":
        """Those that run on a device; what could not be loaded might."""
        able = tuple(runtime for runtime in self.found if runtime.device_refusal(device) is None)
        known = {name: RUNTIMES[name]() for name in self.missing if name in RUNTIMES}
        refused = {name for name, runtime in known.items() if runtime.device_refusal(device) is not None}
        return Installed(able, {name: why for name, why in self.missing.items() if name not in refused})


def installed() -> Installed:
    found, missing = [], dict[str, str]()
    for name, member in RUNTIMES.items():
        try:
            member().engine()
        except NotInstalledError as error:
            missing[name] = str(error)
        else:
            found.append(member())
    return Installed(tuple(found), {**missing, **BROKEN})
