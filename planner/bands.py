"""How far what is measured may be over what was promised. The planner leaves as much below what the user limited.

Memory needs none where it was measured: what it may be off by is an item of the estimate, the reserve.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.limits import MEMORY, TPOT, TTFT
from profiles.device import DeviceProfile

BANDS = {MEMORY: 0.0, TPOT: 0.20, TTFT: 0.50}  # a prompt is one pass, and one disturbance of the machine is all of it
QUICK = {MEMORY: 0.0, TPOT: 0.35, TTFT: 0.70}  # more of it is interpolated, from fewer repeats
DATASHEET = {MEMORY: 0.05, TPOT: 0.20, TTFT: 0.50}
KL_LIMIT = 0.01  # nats per token between the package and the subnet it was made from
QUICK_ENTRIES = 150  # a quick profile has fewer kernels of a runtime than this, a full one 200 or more


def bands(device: DeviceProfile, runtime: str) -> Mapping[str, float]:
    """By what is promised: the share by which a measurement may be over, from what the promise rests on."""
    if not device.measured or not products(device, runtime):
        return DATASHEET
    return QUICK if is_quick(device, runtime) else BANDS


def is_quick(device: DeviceProfile, runtime: str) -> bool:
    return 0 < products(device, runtime) < QUICK_ENTRIES


def products(device: DeviceProfile, runtime: str) -> int:
    """How many of the runtime's products were measured on the device."""
    return sum(entry.runtime == runtime for entry in device.kernels.entries)
