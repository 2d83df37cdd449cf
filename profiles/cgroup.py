"""The memory and CPU limits of the Linux container that this process runs in, cgroup version 1 or 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED = 1 << 60  # version 1 writes "no limit" as a number near 2**63


@dataclass(frozen=True)
class CgroupLimits:
    """`memory_used_bytes` belongs to the group that sets the limit, without the file cache that it can give back."""

    memory_limit_bytes: int | None = None
    memory_used_bytes: int | None = None
    cpu_quota: float | None = None


def read_limits(root: Path = Path("/")) -> CgroupLimits:
    """The tightest limits on the way from this process's group to the top; all None where there are no cgroups."""
    memory = _memory(root)
    quotas = [quota for quota in (_quota(folder) for folder in _folders(root, "cpu")) if quota]
    return CgroupLimits(*memory, min(quotas, default=None))


def _memory(root: Path) -> tuple[int | None, int | None]:
    tightest: tuple[int, int | None] | None = None
    for folder in _folders(root, "memory"):
        limit = _integer(folder / "memory.max") or _integer(folder / "memory.limit_in_bytes")
        if limit is None or limit >= UNLIMITED or (tightest and tightest[0] <= limit):
            continue
        used = _integer(folder / "memory.current") or _integer(folder / "memory.usage_in_bytes")
        tightest = limit, None if used is None else max(0, used - _reclaimable(folder))
    return tightest or (None, None)


def _reclaimable(folder: Path) -> int:
    pairs = (line.split() for line in _text(folder / "memory.stat").splitlines())
    stat = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
    return stat.get("total_inactive_file", stat.get("inactive_file", 0))


def _quota(folder: Path) -> float | None:
    """Cores: `max 100000` or `150000 100000` in version 2, two files in version 1."""
    words = _text(folder / "cpu.max").split()
    if len(words) == 2 and all(word.isdigit() for word in words):
        return int(words[0]) / int(words[1])
    quota, period = _integer(folder / "cpu.cfs_quota_us"), _integer(folder / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's group and those above it. A container may show its own group as the top."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            tops = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in names.split(","):
            tops = [root / "sys/fs/cgroup" / names, root / "sys/fs/cgroup" / controller]
        else:
            continue
        group = path.strip("/")
        for top in tops:
            yield from (top / above for above in (group, *map(str, Path(group).parents)) if (top / above).is_dir())


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _integer(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None
