"""Probes of this machine, and of container and processor files as other machines have them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from profiles.bandwidth import copy_bandwidth
from profiles.cgroup import CgroupLimits, read_limits
from profiles.cpu import instruction_sets, profile_cpu, read_caches, read_cpuinfo, usable_threads
from profiles.device import DeviceProfile


def put(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine() -> None:
    device = profile_cpu(measure_bandwidth=False)
    assert device.kind == "cpu"
    assert device.measured
    assert 0 < device.usable_bytes <= device.memory_bytes
    assert device.available_bytes
    assert 1 <= (device.threads or 0) <= (device.cores_physical or 0) <= (device.cores_logical or 0)
    assert device.bandwidth_bytes_per_s is None
    assert device.versions["python"]
    if Path("/proc/cpuinfo").exists() and device.architecture == "x86_64":
        assert "sse4_1" in device.instruction_sets
    assert DeviceProfile.from_json(json.loads(json.dumps(device.to_json()))) == device


def test_bandwidth_of_this_machine() -> None:
    device = profile_cpu()
    assert device.bandwidth_basis == "measured"
    assert 1e8 < (device.bandwidth_bytes_per_s or 0) < 1e13
    assert device.bandwidth_spread is not None


def test_the_copy_keeps_to_its_share_of_little_memory() -> None:
    assert copy_bandwidth(2, 32 << 20, free_bytes=64 << 20).bytes_per_s > 0


@pytest.mark.parametrize(
    ("physical", "logical", "allowed", "quota", "threads"),
    [
        (8, 16, 16, None, 8),
        (8, 16, None, None, 8),
        (8, 16, 4, None, 2),  # two cores' four hyper-threads
        (8, 16, 1, None, 1),
        (2, 2, 1, None, 1),
        (8, 16, 16, 2.5, 3),
        (8, 16, 16, 0.5, 1),
        (4, 8, 8, 64.0, 4),
    ],
)
def test_threads(physical: int, logical: int, allowed: int | None, quota: float | None, threads: int) -> None:
    assert usable_threads(physical, logical, allowed, quota) == threads


def test_instruction_sets_of_x86_and_arm(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu avx2 avx512_vnni amx_int8 made_up\n\nprocessor\t: 1\n"
    )
    assert read_cpuinfo(path)["model name"] == "Xeon"
    assert instruction_sets(read_cpuinfo(path)) == ("avx2", "avx512_vnni", "amx_int8")
    path.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm sve\nCPU implementer\t: 0x41\n")
    assert instruction_sets(read_cpuinfo(path)) == ("neon", "dotprod", "i8mm", "sve")
    assert read_cpuinfo(tmp_path / "none") == {}


def test_shared_caches_count_once(tmp_path: Path) -> None:
    for cpu in range(4):
        for index, (level, kind, size, shared) in enumerate(
            [(1, "Data", "48K", f"{cpu}"), (2, "Unified", "1M", f"{cpu}"), (3, "Unified", "32768K", f"{cpu // 2 * 2}-")]
        ):
            files = {"level": f"{level}\n", "type": f"{kind}\n", "size": f"{size}\n", "shared_cpu_list": shared}
            put(tmp_path / f"cpu{cpu}/cache/index{index}", files)
    put(tmp_path / "cpu9/cache/index0", {"level": "x"})  # unreadable: left out
    assert [(c.level, c.kind, c.size_bytes, c.count) for c in read_caches(tmp_path)] == [
        (1, "data", 48 << 10, 4),
        (2, "unified", 1 << 20, 4),
        (3, "unified", 32 << 20, 2),
    ]
    assert read_caches(tmp_path / "none") == ()


def test_cgroup_version_2_takes_the_tightest_of_the_groups_above(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/app\n",
            "sys/fs/cgroup/user/app/memory.max": "max\n",
            "sys/fs/cgroup/user/app/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user/memory.max": "8589934592\n",
            "sys/fs/cgroup/user/memory.current": "1073741824\n",
            "sys/fs/cgroup/user/memory.stat": "anon 5\ninactive_file 73741824\n",
            "sys/fs/cgroup/user/cpu.max": "150000 100000\n",
        },
    )
    assert read_limits(tmp_path) == CgroupLimits(8 << 30, 1000000000, 1.5)


def test_cgroup_version_1(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/self/cgroup": "9:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648\n",  # a container sees its own group as the top
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "300\n",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 100\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert read_limits(tmp_path) == CgroupLimits(2 << 30, 200, 2.0)


def test_no_limit_and_no_cgroups(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == CgroupLimits()
    put(
        tmp_path,
        {
            "proc/self/cgroup": "9:memory:/\n1:cpu:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert read_limits(tmp_path) == CgroupLimits()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_affinity_lowers_the_threads() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert profile_cpu(measure_bandwidth=False).threads == 1
    finally:
        os.sched_setaffinity(0, before)
