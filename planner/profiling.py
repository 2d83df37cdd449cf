"""A device's profile: probed, and timed with one runtime."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from planner.frame import device_refusal
from planner.runtimes.base import Progress, Runtime
from profiles.detect import Skipped, detect
from profiles.device import DeviceProfile
from profiles.kernels import KernelTable


def profile_device(
    device: str, runtime: Runtime, quick: bool = False, progress: Progress | None = None
) -> tuple[DeviceProfile, tuple[Skipped, ...]]:
    """Probe a device of this machine and time `runtime` on it: its products, and what it costs beyond them.

    `device` as in `profiles.detect.detect`. Returns the profile, and the devices that were passed over with the reason.
    A device that the runtime does not run on is probed alone, and only when it is asked for by name.
    """
    report = progress or (lambda what, share: None)
    report("probing the device", 0.0)
    profile, skipped = detect(device, refuse_gpu=lambda gpu: device_refusal(runtime, gpu) if device == "auto" else None)
    if device_refusal(runtime, profile) is not None:
        return profile, skipped
    profile = replace(profile, threads=runtime.best_threads(profile))
    entries = runtime.measure_kernels(profile, quick, lambda what, share: report(f"timing products, {what}", share))
    kernels = KernelTable(tuple(entries), datetime.now(UTC).date().isoformat(), runtime.versions())
    profile = replace(profile, kernels=kernels)
    found = runtime.calibrate(profile, lambda what, share: report(f"timing small models, {what}", share))
    return replace(profile, calibrations=found), skipped
