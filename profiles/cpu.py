"""What this machine's processor and memory are. Linux is read in detail, other systems as far as psutil goes."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from datetime import date
from pathlib import Path

from profiles.cgroup import read_limits
from profiles.device import Cache, DeviceProfile

# What a quantized product may use; the names are those of /proc/cpuinfo, but for Arm's first two.
X86_SETS = (
    "sse4_1", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_bf16", "avx512_vnni", "amx_tile",
    "amx_bf16", "amx_int8",
)  # fmt: skip
ARM_SETS = {"asimd": "neon", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve", "sve2": "sve2"}
VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "0x41": "Arm", "0x61": "Apple", "0xc0": "Ampere"}


def profile_cpu(measure_bandwidth: bool = True) -> DeviceProfile:
    """This machine as a device. `measure_bandwidth=False` saves half a second and leaves the bandwidth None."""
    import psutil

    info = read_cpuinfo()
    limits = read_limits()
    memory = psutil.virtual_memory()
    caches = read_caches()
    logical = psutil.cpu_count() or os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    model = info.get("model name") or _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()
    profile = DeviceProfile(
        name=_slug(f"{model} {physical} cores"),
        kind="cpu",
        vendor=_vendor(info, model),
        model=model,
        memory_bytes=memory.total,
        measured=True,
        source="bitfleet profile device",
        date=date.today().isoformat(),
        architecture=platform.machine() or None,
        cores_physical=physical,
        cores_logical=logical,
        threads=usable_threads(physical, logical, allowed_cores(), limits.cpu_quota),
        clock_hz=_clock_hz(),
        instruction_sets=instruction_sets(info),
        caches=caches,
        available_bytes=memory.available,
        cgroup_limit_bytes=limits.memory_limit_bytes,
        cgroup_used_bytes=limits.memory_used_bytes,
        cpu_quota=limits.cpu_quota,
        versions={"os": platform.platform(), "python": platform.python_version(), "psutil": psutil.__version__},
    )
    return with_bandwidth(profile) if measure_bandwidth else profile


def with_bandwidth(profile: DeviceProfile) -> DeviceProfile:
    """The profile with this machine's copy bandwidth, measured now with all the threads that a runtime would use."""
    from dataclasses import replace

    from profiles.bandwidth import copy_bandwidth

    measured = copy_bandwidth(profile.threads or 1, profile.last_level_cache_bytes, profile.usable_bytes)
    return replace(
        profile,
        bandwidth_bytes_per_s=measured.bytes_per_s,
        bandwidth_basis="measured",
        bandwidth_spread=measured.spread,
    )


def usable_threads(physical: int, logical: int, allowed: int | None, quota: float | None) -> int:
    """One thread per physical core that affinity and the container's quota leave, at least one."""
    share = physical / logical  # an affinity counts hyper-threads
    cores = physical if allowed is None or allowed >= logical else max(1, round(allowed * share))
    return max(1, min(cores, math.ceil(quota) if quota else cores))


def allowed_cores() -> int | None:
    """Logical cores that this process may run on; None where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def read_cpuinfo(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo; empty on other systems."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def instruction_sets(info: dict[str, str]) -> tuple[str, ...]:
    """The known sets among a processor's flags (x86) or features (Arm); every Apple processor has the first two."""
    flags = set(info.get("flags", "").split())
    features = info.get("Features", "").split()
    if not info and platform.system() == "Darwin" and platform.machine() == "arm64":
        return ("neon", "dotprod")
    return tuple(name for name in X86_SETS if name in flags) + tuple(
        name for flag, name in ARM_SETS.items() if flag in features
    )


def read_caches(root: Path = Path("/sys/devices/system/cpu")) -> tuple[Cache, ...]:
    """Caches of each level with their count; caches that cores share count once. Empty where Linux does not tell."""
    found: dict[tuple[int, str, int], set[str]] = {}
    for index in root.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level = int((index / "level").read_text())
            kind = (index / "type").read_text().strip().lower()
            size = _size_bytes((index / "size").read_text().strip())
            shared = (index / "shared_cpu_list").read_text().strip()
        except (OSError, ValueError):
            continue
        if size and kind in ("data", "instruction", "unified"):
            found.setdefault((level, kind, size), set()).add(shared)
    return tuple(Cache(*key, count=len(shared)) for key, shared in sorted(found.items()))


def _size_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else 0


def _clock_hz() -> float | None:
    import psutil

    try:
        clock = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):  # absent in some containers and on some systems
        return None
    return (clock.max or clock.current) * 1e6 or None if clock else None


def _vendor(info: dict[str, str], model: str) -> str:
    code = info.get("vendor_id") or info.get("CPU implementer", "")
    return VENDORS.get(code) or code or ("Apple" if model.startswith("Apple") else platform.system() or "unknown")


def _sysctl(name: str) -> str:
    """macOS names its processor here."""
    if platform.system() != "Darwin":
        return ""
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
