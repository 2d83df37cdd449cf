"""What a runtime is: what it can load and why not, what a choice costs there, how it is written, and what runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from planner.request import Workload
from planner.runtimes.child import Measurement
from profiles.device import Calibration, DeviceProfile
from profiles.kernels import KernelEntry
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec, UnitSpec

EXACT = "exact"  # arithmetic on the model's shapes
MEASURED = "measured"  # from the profile's measurements of this runtime on this device
INTERPOLATED = "interpolated"  # between measurements of other sizes
MODELLED = "modelled"  # by a rule that held wherever it was checked, on other devices
ESTIMATE = "estimate"  # from datasheet numbers or the runtime's usual costs; nothing on the device was measured
BASES = (EXACT, MEASURED, INTERPOLATED, MODELLED, ESTIMATE)  # strongest first


def weakest(bases: Iterable[str]) -> str:
    """What a sum rests on: the weakest of its parts."""
    return max(bases, key=BASES.index, default=EXACT)


FLOAT = "float"  # activations that are not rounded
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

    @classmethod
    def of_products(
        cls, unit: str, parts: Sequence[tuple[int, float, float, str]], factor: float, more: float
    ) -> LatencyItem:
        """Of a unit's products: how many there are of each, its ms, spread and basis. All take `factor` times so long,
        of which `more` is uncertain besides."""
        total = sum(count * ms for count, ms, _, _ in parts)
        spread = sum(count * ms * spread for count, ms, spread, _ in parts) / total + more if total else 0.0
        return cls(unit, factor * total, weakest(basis for *_, basis in parts), unit, spread)


@dataclass(frozen=True)
class Piece:
    """`bytes` of a file from `offset` on. `name` is the tensor's that they are, empty for whatever else."""

    name: str
    offset: int
    bytes: int


class Runtime(ABC):
    """One inference runtime: what it holds, how that is written, and what it costs on a device.

    Nothing here needs the runtime itself, and planning imports no torch. What runs packages is its `engine`, which is
    not on every machine: without one a runtime still plans and exports, and what was not run is said to be unchecked.
    """

    name: ClassVar[str]
    device_kinds: ClassVar[tuple[str, ...]]  # the kinds of device profile it runs on
    activations: ClassVar[str]  # what its products read: int8, or FLOAT
    deploys: ClassVar[tuple[str, ...]]  # how an adapter may reach it: folded into the `scales`, as a `side` path

    # What it holds.

    @abstractmethod
    def refusal(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> str | None:
        """Why this runtime cannot load `unit` at `choice`, or None if it can."""

    @abstractmethod
    def model_refusal(self, spec: ModelSpec) -> str | None:
        """Why a model of this architecture cannot be exported, or None if it can."""

    def device_refusal(self, device: DeviceProfile) -> str | None:
        """Why this runtime does not run on a device, whatever the choices are, or None if it does."""
        kinds = self.device_kinds
        return None if device.kind in kinds else f"{self.name} runs on {' and '.join(kinds)}, not on {device.kind}"

    @abstractmethod
    def disk_bytes(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> int:
        """Exact bytes that the unit takes in the weight files."""

    @abstractmethod
    def fixed_disk_bytes(self, spec: ModelSpec, workload: Workload) -> int:
        """Exact bytes in the weight files that no choice changes: norms, biases, rotary tables."""

    def description_bytes(self, spec: ModelSpec, model_dir: Path) -> int:
        """Exact bytes in the weight files of what describes the model in the folder `model_dir` (its settings and its
        tokenizer); 0 where that is in files of its own. InputError where the runtime cannot be told of it."""
        return 0

    # What it costs.

    @abstractmethod
    def memory_items(
        self, spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile
    ) -> tuple[MemoryItem, ...]:
        """Peak memory of a process that serves the workload, itemised."""

    @abstractmethod
    def latency_items(
        self, spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile, phase: str
    ) -> tuple[LatencyItem, ...]:
        """One forward pass, itemised: of the whole prompt (PREFILL), or of one token after it (DECODE)."""

    # Its packages.

    @abstractmethod
    def write(
        self, files: Any, subnet: Subnet, workload: Workload, threads: int | None, folder: Path,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        """Write everything the runtime loads into the existing, empty `folder`. `files` is an open supernet."""

    @abstractmethod
    def weight_files(self) -> tuple[str, ...]:
        """Names of the files whose sizes `disk_bytes`, `fixed_disk_bytes` and `description_bytes` sum to."""

    @abstractmethod
    def check_package(self, folder: Path, sizes: Mapping[str, int], workload: Workload) -> None:
        """InputError, naming it, for what an exporter does not write: a package may be a stranger's, and what is loaded
        from it must not run code, leave the folder or never end. `sizes` are the listed files' bytes, by name; the plan
        serves `workload`."""

    def pieces(self, folder: Path, sizes: Mapping[str, int]) -> dict[str, tuple[Piece, ...]]:
        """Of each file of a checked package what it consists of, in order and without gaps: what two packages have in
        common is copied piece by piece. `sizes` as above; a file is one piece unless its tensors are known."""
        return {name: (Piece("", 0, size),) if size else () for name, size in sizes.items()}

    @abstractmethod
    def spoken(self, folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
        """The package's token ids of each text, its chat template's text for each list of messages, and its stop ids,
        by the model's own tokenizer, which the package brings.

        In a fresh process with a time limit, since a template is a program. Where the package has no answer, a line
        that says why stands for it.
        """

    @abstractmethod
    def launch(self, folder: Path) -> str:
        """The command that runs a package with this runtime."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the packages that `write` needs; NotInstalledError, with what to install, where they are
        missing."""

    @abstractmethod
    def engine(self) -> Engine | None:
        """The runtime itself; None where bitfleet runs none of its packages. NotInstalledError, with what to install,
        where it is not on this machine."""


class Engine(ABC):
    """A runtime that is installed here, and runs packages: each method in a fresh process.

    `folder` is a checked package. What does not load is InputError, what the machine has no room for SystemFailure.
    """

    @abstractmethod
    def best_threads(self, device: DeviceProfile) -> int:
        """With how many threads this machine generates fastest; what follows is measured with `device.threads`."""

    @abstractmethod
    def measure_kernels(
        self, device: DeviceProfile, quick: bool = False, progress: Progress | None = None
    ) -> list[KernelEntry]:
        """Times of the runtime's quantized product on this machine."""

    @abstractmethod
    def calibrate(self, device: DeviceProfile, progress: Progress | None = None) -> tuple[Calibration, ...]:
        """What the runtime costs on this machine beyond its products."""

    @abstractmethod
    def slower(self, device: Mapping[str, Any]) -> float:
        """How many times as long the `kernels` that a plan keeps of its device take here and now; 1.0 where it keeps
        none, or where they are as fast."""

    @abstractmethod
    def measure(self, folder: Path, workload: Workload) -> Measurement:
        """What serving the workload takes."""

    @abstractmethod
    def longest_peak_bytes(self, folder: Path, workload: Workload) -> int:
        """Peak memory of serving the longest prompt that the context has room for."""

    @abstractmethod
    def logits(self, folder: Path, windows: Any) -> Any:
        """Teacher-forced logits [windows, tokens, vocabulary]."""

    @abstractmethod
    def log_probs(self, folder: Path, windows: Any, positions: Any, ids: Any, seconds: float) -> tuple[Any, Any]:
        """What a package says at the first of the ascending `positions` `(n,)` in `windows` one after another, as far
        as it comes in the time: log probabilities of `ids` `(n, k)`, float32 `(done, k)`, and the likeliest tokens
        `(done,)`."""

    @abstractmethod
    def continued(self, folder: Path, prompts: Any, new_tokens: int) -> list[list[int]]:
        """How a package goes on greedily after each of the prompts of token ids; it may stop."""

    @abstractmethod
    def spoken(self, folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
        """As `Runtime.spoken`, by the runtime's own tokenizer, for whoever loads a package without bitfleet."""

    @abstractmethod
    def generate(self, folder: Path, prompt: str, max_tokens: int) -> Iterator[str]:
        """The answer to `prompt`, piece by piece."""
