"""What a runtime is: what it can load and why not, what a choice costs there, how it is written and launched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec, UnitSpec

EXACT = "exact"  # arithmetic on the model's shapes
MEASURED = "measured"  # from the profile's measurements of this runtime on this device
ESTIMATE = "estimate"  # from datasheet numbers or the runtime's usual costs; nothing on the device was measured

PREFILL = "prefill"
DECODE = "decode"

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0 to 1."""


@dataclass(frozen=True)
class MemoryItem:
    """Bytes of peak memory. `unit` names the unit that a choice changes them for; None for what no choice changes."""

    name: str
    bytes: int
    basis: str
    unit: str | None = None


@dataclass(frozen=True)
class LatencyItem:
    """Milliseconds of one forward pass. `unit` as in MemoryItem; `spread` is the relative half-width of the number."""

    name: str
    ms: float
    basis: str
    unit: str | None = None
    spread: float = 0.0


class Runtime(ABC):
    """One inference runtime. Planning methods import neither torch nor the runtime itself."""

    name: ClassVar[str]

    @abstractmethod
    def refusal(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> str | None:
        """Why this runtime cannot load `unit` at `choice`, or None if it can."""

    @abstractmethod
    def model_refusal(self, spec: ModelSpec) -> str | None:
        """Why a model of this architecture cannot be exported, or None if it can."""

    @abstractmethod
    def disk_bytes(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> int:
        """Exact bytes that the unit takes in the weight files."""

    @abstractmethod
    def fixed_disk_bytes(self, spec: ModelSpec, workload: Any) -> int:
        """Exact bytes in the weight files that no choice changes: norms, biases, rotary tables."""

    @abstractmethod
    def products(self, spec: ModelSpec, unit: UnitSpec) -> tuple[tuple[int, int], ...]:
        """(in_features, out_features) of each quantized product that a forward pass runs for the unit."""

    @abstractmethod
    def memory_items(
        self, spec: ModelSpec, subnet: Subnet, workload: Any, device: Any
    ) -> tuple[MemoryItem, ...]:
        """Peak memory of a process that serves the workload, itemised."""

    @abstractmethod
    def unit_memory_bytes(self, spec: ModelSpec, unit: UnitSpec, choice: Choice, device: Any) -> int:
        """What the unit adds to peak memory; the subnet's items sum to these plus what no choice changes."""

    @abstractmethod
    def latency_items(
        self, spec: ModelSpec, subnet: Subnet, workload: Any, device: Any, phase: str
    ) -> tuple[LatencyItem, ...]:
        """One forward pass, itemised: of the whole prompt (PREFILL), or of one token with a full context (DECODE)."""

    @abstractmethod
    def unit_ms(self, spec: ModelSpec, unit: UnitSpec, choice: Choice, rows: int, device: Any) -> LatencyItem:
        """What the unit's products take on `rows` token rows."""

    @abstractmethod
    def measure_kernels(self, quick: bool = False) -> Iterable[Any]:
        """Times of the runtime's quantized product on this machine, as entries of a kernel table."""

    @abstractmethod
    def calibrate(self, quick: bool = False, progress: Progress | None = None) -> dict[str, float]:
        """What the runtime costs on this machine beyond its products, measured in fresh processes."""

    @abstractmethod
    def write(self, files: Any, subnet: Subnet, workload: Any, folder: Path, progress: Progress | None = None) -> None:
        """Write everything the runtime loads into the existing, empty `folder`."""

    @abstractmethod
    def launch(self, folder: Path) -> str:
        """The command that runs a package with this runtime."""
