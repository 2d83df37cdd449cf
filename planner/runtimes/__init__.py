"""The runtimes a package can be made for."""

from planner.runtimes.base import Runtime
from planner.runtimes.llamacpp.runtime import LlamaCpp
from planner.runtimes.mlx.runtime import Mlx
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.vllm.runtime import Vllm
from profiles.device import DeviceProfile
from records.errors import NotInstalledError

RUNTIMES: dict[str, type[Runtime]] = {"onnxruntime": OnnxRuntime, "llamacpp": LlamaCpp, "vllm": Vllm, "mlx": Mlx}
AUTO = "auto"
"""In place of a runtime's name: whichever loses least on the device."""


def installed() -> tuple[tuple[Runtime, ...], dict[str, str]]:
    """The runtimes that are here or of which bitfleet runs nothing, and for each of the others what to install."""
    found, missing = [], dict[str, str]()
    for name, member in RUNTIMES.items():
        try:
            member().engine()
        except NotInstalledError as error:
            missing[name] = str(error)
        else:
            found.append(member())
    return tuple(found), missing


def able(device: DeviceProfile) -> tuple[tuple[Runtime, ...], dict[str, str]]:
    """The runtimes that run on a device and, where bitfleet runs their packages, are installed here; for each of the
    others that run on it, what to install."""
    found, missing = installed()
    here = tuple(runtime for runtime in found if runtime.device_refusal(device) is None)
    return here, {name: why for name, why in missing.items() if RUNTIMES[name]().device_refusal(device) is None}
