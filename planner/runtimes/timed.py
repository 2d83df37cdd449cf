"""A timer of a runtime whose products stand in a kernel table, and whose other costs a calibrator solves for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from planner.runtimes.base import Progress
from planner.runtimes.engine import Timer
from profiles.device import Calibration, DeviceProfile
from profiles.kernels import KernelEntry

if TYPE_CHECKING:
    from planner.runtimes.calibrator import Calibrator

ASSUMED_CACHE_BYTES = 64 * 2**20  # of the last level, on a device whose caches are unknown


class Products(Protocol):
    """Times quantized products that do not fit in a cache of so many bytes. A module may be one."""

    def one_row_ms(self, threads: int, cache_bytes: int) -> float:
        """What a product of one row takes, but for the slowest tenth of its turns."""

    def measure(self, threads: int, cache_bytes: int, quick: bool, progress: Progress | None) -> list[KernelEntry]: ...


class TableTimer(Timer):
    """A member says what times its products and solves for the rest; imported where they are asked for, since packages
    are run without."""

    @abstractmethod
    def products(self) -> Products:
        """What times the runtime's quantized product."""

    @abstractmethod
    def calibrator(self) -> Calibrator:
        """What serves small models."""

    @abstractmethod
    def again(self, entries: Sequence[KernelEntry], cache_bytes: int) -> float:
        """As `slower`, of at least one entry."""

    def best_threads(self, device: DeviceProfile) -> int:
        """1 or all, whichever generates faster: more threads lose where something else keeps a core busy, because the
        runtime's threads wait for the slowest."""
        available, cache, products = device.threads or 1, cache_bytes(device), self.products()
        faster = available > 1 and products.one_row_ms(available, cache) < products.one_row_ms(1, cache)
        return available if faster else 1

    def kernels(
        self, device: DeviceProfile, quick: bool = False, progress: Progress | None = None
    ) -> list[KernelEntry]:
        return self.products().measure(device.threads or 1, cache_bytes(device), quick, progress)

    def calibrate(
        self, device: DeviceProfile, quick: bool = False, progress: Progress | None = None
    ) -> tuple[Calibration, ...]:
        return self.calibrator().calibrate(device, quick, progress)

    def slower(self, entries: Sequence[KernelEntry], cache_bytes: int | None) -> float:
        return self.again(entries, cache_bytes or ASSUMED_CACHE_BYTES) if entries else 1.0


def cache_bytes(device: DeviceProfile) -> int:
    """Of the last level, or what stands for them."""
    return device.last_level_cache_bytes or ASSUMED_CACHE_BYTES
