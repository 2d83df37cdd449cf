"""A device's profile: probed, and timed with the runtimes that run on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from planner.runtimes.base import Progress, Runtime
from planner.runtimes.engine import Timer
from profiles.detect import Skipped, detect
from profiles.device import DeviceProfile
from profiles.kernels import KernelTable


def profile_device(
    device: str, runtimes: Sequence[Runtime], quick: bool = False, progress: Progress | None = None
) -> tuple[DeviceProfile, tuple[Skipped, ...]]:
    """Probe a device of this machine and time `runtimes` on it: their products, and what they cost beyond them.

    `device` as in `profiles.detect.detect`. Returns the profile, and the devices that were passed over with the reason.
    A device that none of them runs on is probed alone, and only when it is asked for by name.
    """
    report = progress or (lambda what, share: None)
    report("probing the device", 0.0)
    profile, skipped = detect(device, refuse_gpu=lambda gpu: _refused(runtimes, gpu) if device == "auto" else None)
    if profile.kind == "cuda":  # of several, each that was passed over is in a line
        taken = f"cuda:{len(skipped)}" if device == "auto" else device
        profile, more = _on_gpu(profile, taken, quick, report)
        skipped = (*skipped, *more)
    able = [one for one in runtimes if one.device_refusal(profile) is None]
    timers = [(one, timer) for one in able if (timer := _timer(one)) and profile.kind in timer.device_kinds]
    for number, (runtime, timer) in enumerate(timers):
        if number == 0:  # one number for a machine: that of the first, which all others are timed with
            profile = replace(profile, threads=timer.best_threads(profile))
        versions = {**profile.kernels.versions, **runtime.versions()}
        profile = _timed(profile, timer, versions, quick, _of(runtime, report) if len(timers) > 1 else report)
    return profile, skipped


def _on_gpu(
    profile: DeviceProfile, device: str, quick: bool, report: Progress
) -> tuple[DeviceProfile, tuple[Skipped, ...]]:
    """A GPU's profile with what products take there through whatever is installed; and what was not timed, and why."""
    from profiles import gpu_times

    reason = gpu_times.refusal(device)
    if reason is not None:
        return profile, (Skipped(f"what {device} multiplies by", reason),)
    found, reasons = gpu_times.timed(profile, device, gpu_times.QUICK if quick else gpu_times.FULL, report)
    return found, tuple(Skipped(f"{device}, {name}", why) for name, why in reasons.items())


def with_others(made: DeviceProfile, before: DeviceProfile | None) -> DeviceProfile:
    """The profile with what another one of the same device, made with as many threads, knows of other runtimes."""
    if before is None or (before.name, before.kind, before.threads) != (made.name, made.kind, made.threads):
        return made
    timed = {entry.runtime for entry in made.kernels.entries} | {one.runtime for one in made.calibrations}
    entries = [entry for entry in before.kernels.entries if entry.runtime not in timed]
    calibrations = [one for one in before.calibrations if one.runtime not in timed]
    kernels = replace(
        made.kernels,
        entries=(*made.kernels.entries, *entries),
        versions={**before.kernels.versions, **made.kernels.versions},
    )
    return replace(made, kernels=kernels, calibrations=(*made.calibrations, *calibrations))


def _timer(runtime: Runtime) -> Timer | None:
    engine = runtime.engine()
    return None if engine is None else engine.timer()


def _refused(runtimes: Sequence[Runtime], device: DeviceProfile) -> str | None:
    """Why none of these runs on a device, or None if one does."""
    lines = [runtime.device_refusal(device) for runtime in runtimes]
    return None if None in lines else "; ".join(filter(None, lines))


def _of(runtime: Runtime, report: Progress) -> Progress:
    return lambda what, share: report(f"{runtime.name}, {what}", share)


def _timed(
    profile: DeviceProfile, timer: Timer, versions: Mapping[str, str], quick: bool, report: Progress
) -> DeviceProfile:
    """The profile with what one more runtime takes."""
    entries = timer.kernels(profile, quick, lambda what, share: report(f"timing products, {what}", share))
    today = datetime.now(UTC).date().isoformat()
    profile = replace(profile, kernels=KernelTable((*profile.kernels.entries, *entries), today, versions))
    found = timer.calibrate(profile, quick, lambda what, share: report(f"timing small models, {what}", share))
    return replace(profile, calibrations=(*profile.calibrations, *found))
