"""NVIDIA GPUs, through NVML. No torch but for the measured bandwidth, and that only where it is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

from profiles.bandwidth import Bandwidth
from profiles.device import DeviceProfile
from profiles.measure import time_callable


class NoGPU(Exception):
    """Why there is no usable NVIDIA GPU here, in one line."""


@contextmanager
def nvml() -> Iterator[Any]:
    """The pynvml module between its init and shutdown. NoGPU, with the reason, on any NVML error inside."""
    try:
        import pynvml
    except ImportError:
        raise NoGPU("NVML's Python bindings are missing; `pip install nvidia-ml-py`") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoGPU(f"no NVIDIA driver answers ({_reason(error)})") from None
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise NoGPU(f"NVML failed: {_reason(error)}") from None
    finally:
        pynvml.nvmlShutdown()


def count_gpus() -> int:
    """NVIDIA GPUs on this machine; NoGPU with the reason where there is none."""
    with nvml() as pynvml:
        count: int = pynvml.nvmlDeviceGetCount()
    if not count:
        raise NoGPU("the NVIDIA driver lists no GPU")
    return count


def profile_cuda(index: int, measure_bandwidth: bool = True) -> DeviceProfile:
    """GPU number `index`. NoGPU, with the reason, where it is absent or does not answer.

    Bandwidth is measured where torch with CUDA imports, else theoretical: memory clock x 2 transfers x bus width.
    """
    count = count_gpus()
    if index >= count:
        raise NoGPU(f"GPU {index} is absent, the driver lists {count} (from cuda:0 to cuda:{count - 1})")
    with nvml() as pynvml:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        model = _text(pynvml.nvmlDeviceGetName(handle))
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        sm_hz = _hz(pynvml, handle, pynvml.NVML_CLOCK_SM)
        memory_hz = _hz(pynvml, handle, pynvml.NVML_CLOCK_MEM)
        bus_bits = _optional(pynvml, pynvml.nvmlDeviceGetMemoryBusWidth, handle)
        cores = _optional(pynvml, pynvml.nvmlDeviceGetNumGpuCores, handle)
        versions = {
            "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
            "cuda driver": _cuda_version(_optional(pynvml, pynvml.nvmlSystemGetCudaDriverVersion)),
        }
    measured = measured_bandwidth(index) if measure_bandwidth else None
    theoretical = memory_hz * 2 * bus_bits / 8 if memory_hz and bus_bits else None
    bandwidth = measured.bytes_per_s if measured else theoretical
    return DeviceProfile(
        name=re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-"),
        kind="cuda",
        vendor="NVIDIA",
        model=model,
        memory_bytes=memory.total,
        measured=True,
        source="bitfleet profile device",
        date=date.today().isoformat(),
        architecture=f"sm_{major}{minor}",
        clock_hz=sm_hz,
        available_bytes=memory.free,
        bandwidth_bytes_per_s=bandwidth,
        bandwidth_basis=None if bandwidth is None else "measured" if measured else "theoretical",
        bandwidth_spread=measured.spread if measured else None,
        fp32_ops_per_s=2 * cores * sm_hz if cores and sm_hz else None,
        versions={name: version for name, version in versions.items() if version},
    )


def measured_bandwidth(index: int) -> Bandwidth | None:
    """Bytes read plus written by a device-to-device copy larger than the cache; None without torch and CUDA."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    free = torch.cuda.mem_get_info(index)[0]
    size = min(1 << 30, free // 4)
    source = torch.ones(size, dtype=torch.uint8, device=f"cuda:{index}")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize(index)

    timing = time_callable(copy, min_repeats=10, min_time_s=0.2)
    return Bandwidth(2 * size / (timing.median_ms / 1e3), timing.spread)


def _hz(pynvml: Any, handle: Any, clock: int) -> float | None:
    mhz = _optional(pynvml, pynvml.nvmlDeviceGetMaxClockInfo, handle, clock)
    return mhz * 1e6 if mhz else None


def _optional(pynvml: Any, ask: Any, *arguments: Any) -> Any:
    """What this GPU or driver does not support is None, not an error."""
    try:
        return ask(*arguments)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return None


def _cuda_version(number: int | None) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
