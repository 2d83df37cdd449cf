"""Which device to plan for, and why the others were skipped."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from profiles.cpu import profile_cpu
from profiles.cuda import NoGPU, count_gpus, profile_cuda
from profiles.device import DeviceProfile
from records.errors import InputError


@dataclass(frozen=True)
class Skipped:
    """A device that was not taken, and the reason in one line."""

    device: str
    reason: str


def detect(
    device: str = "auto",
    *,
    refuse_gpu: Callable[[DeviceProfile], str | None] | None = None,
    measure_bandwidth: bool = True,
) -> tuple[DeviceProfile, tuple[Skipped, ...]]:
    """The device that `device` names ("cpu", "cuda:0"), or the best one ("auto"): a GPU where one works, else the CPU.
    A GPU's host is this machine.

    Whether the runtime at hand can use a GPU is the runtime's to say: `refuse_gpu` returns its reason, or None. With
    "auto" a refused GPU is skipped and listed. Asked for by name, one that is refused or absent is a
    ValueError with the reason.
    """
    if device == "cpu":
        return profile_cpu(measure_bandwidth), ()
    if device == "auto":
        return _best(refuse_gpu, measure_bandwidth)
    match = re.fullmatch(r"cuda:(\d{1,4})", device)
    if match is None:
        raise InputError(f"device must be auto, cpu or cuda:N such as cuda:0, got {device!r}")
    try:
        return _gpu(int(match[1]), refuse_gpu, measure_bandwidth), ()
    except NoGPU as error:
        raise InputError(f"{device} cannot be used: {error}; use --device cpu or auto") from None


def _best(
    refuse_gpu: Callable[[DeviceProfile], str | None] | None, measure_bandwidth: bool
) -> tuple[DeviceProfile, tuple[Skipped, ...]]:
    skipped: list[Skipped] = []
    try:
        gpus = range(count_gpus())
    except NoGPU as error:
        gpus = range(0)
        skipped.append(Skipped("cuda", str(error)))
    for index in gpus:
        try:
            return _gpu(index, refuse_gpu, measure_bandwidth), tuple(skipped)
        except NoGPU as error:
            skipped.append(Skipped(f"cuda:{index}", str(error)))
    return profile_cpu(measure_bandwidth), tuple(skipped)


def _gpu(
    index: int, refuse_gpu: Callable[[DeviceProfile], str | None] | None, measure_bandwidth: bool
) -> DeviceProfile:
    if refuse_gpu is not None:
        reason = refuse_gpu(profile_cuda(index, measure_bandwidth=False))
        if reason:
            raise NoGPU(reason)
    return replace(profile_cuda(index, measure_bandwidth), host=profile_cpu(measure_bandwidth))
