"""What a runtime is: what it can load and why not, what a choice costs there, how it is written and launched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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


@dataclass(frozen=True)
class Piece:
    """`bytes` of a file from `offset` on. `name` is the tensor's that they are, empty for whatever else."""

    name: str
    offset: int
    bytes: int


class Runtime(ABC):
    """One inference runtime. Planning methods import neither torch nor the runtime itself."""

    name: ClassVar[str]
    device_kinds: ClassVar[tuple[str, ...]]  # the kinds of device profile it runs on
    activations: ClassVar[str]  # what its products read: int8, or FLOAT
    deploys: ClassVar[tuple[str, ...]]  # how an adapter may reach it: folded into the `scales`, as a `side` path

    @abstractmethod
    def refusal(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> str | None:
        """Why this runtime cannot load `unit` at `choice`, or None if it can."""

    @abstractmethod
    def model_refusal(self, spec: ModelSpec) -> str | None:
        """Why a model of this architecture cannot be exported, or None if it can."""

    def device_refusal(self, device: Any) -> str | None:
        """Why this runtime does not run on a device, whatever the choices are, or None if it does."""
        kinds = self.device_kinds
        return None if device.kind in kinds else f"{self.name} runs on {' and '.join(kinds)}, not on {device.kind}"

    @abstractmethod
    def disk_bytes(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> int:
        """Exact bytes that the unit takes in the weight files."""

    @abstractmethod
    def fixed_disk_bytes(self, spec: ModelSpec, workload: Any) -> int:
        """Exact bytes in the weight files that no choice changes: norms, biases, rotary tables."""

    def description_bytes(self, spec: ModelSpec, model_dir: Path) -> int:
        """Exact bytes in the weight files of what describes the model in the folder `model_dir` (its settings and its
        tokenizer); 0 where that is in files of its own. InputError where the runtime cannot be told of it."""
        return 0

    @abstractmethod
    def memory_items(self, spec: ModelSpec, subnet: Subnet, workload: Any, device: Any) -> tuple[MemoryItem, ...]:
        """Peak memory of a process that serves the workload, itemised."""

    @abstractmethod
    def latency_items(
        self, spec: ModelSpec, subnet: Subnet, workload: Any, device: Any, phase: str
    ) -> tuple[LatencyItem, ...]:
        """One forward pass, itemised: of the whole prompt (PREFILL), or of one token after it (DECODE)."""

    @abstractmethod
    def best_threads(self, device: Any) -> int:
        """With how many threads this machine generates fastest; what follows is measured with `device.threads`."""

    @abstractmethod
    def measure_kernels(self, device: Any, quick: bool = False, progress: Progress | None = None) -> list[Any]:
        """Times of the runtime's quantized product on this machine: `profiles.kernels.KernelEntry` each."""

    @abstractmethod
    def calibrate(self, device: Any, progress: Progress | None = None) -> tuple[Any, ...]:
        """What the runtime costs on this machine beyond its products: `profiles.device.Calibration` each."""

    @abstractmethod
    def write(
        self, files: Any, subnet: Subnet, workload: Any, threads: int | None, folder: Path,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        """Write everything the runtime loads into the existing, empty `folder`."""

    @abstractmethod
    def weight_files(self) -> tuple[str, ...]:
        """Names of the files whose sizes `disk_bytes`, `fixed_disk_bytes` and `description_bytes` sum to."""

    @abstractmethod
    def check_package(self, folder: Path, sizes: Mapping[str, int], workload: Any) -> None:
        """InputError, naming it, for what an exporter does not write: a package may be a stranger's, and what is loaded
        from it must not run code, leave the folder or never end. `sizes` are the listed files' bytes, by name; the plan
        serves `workload`."""

    def pieces(self, folder: Path, sizes: Mapping[str, int]) -> dict[str, tuple[Piece, ...]]:
        """Of each file of a checked package what it consists of, in order and without gaps: what two packages have in
        common is copied piece by piece. `sizes` as above; a file is one piece unless its tensors are known."""
        return {name: (Piece("", 0, size),) if size else () for name, size in sizes.items()}

    @abstractmethod
    def measure(self, folder: Path, workload: Any) -> Any:
        """`peak_bytes`, `ttft_ms` and `tpot_ms` of serving the workload from `folder` in a fresh process."""

    @abstractmethod
    def longest_peak_bytes(self, folder: Path, workload: Any) -> int:
        """Peak memory of serving the longest prompt that the context has room for, in a fresh process."""

    @abstractmethod
    def slower(self, device: Mapping[str, Any]) -> float:
        """How many times as long the `kernels` that a plan keeps of its device take here and now; 1.0 where it keeps
        none, or where they are as fast."""

    @abstractmethod
    def logits(self, folder: Path, windows: Any) -> Any:
        """Teacher-forced logits [windows, tokens, vocabulary] of a package, from a fresh process."""

    @abstractmethod
    def log_probs(self, folder: Path, windows: Any, positions: Any, ids: Any, seconds: float) -> tuple[Any, Any]:
        """What a package says at the first of the ascending `positions` `(n,)` in `windows` one after another, as far
        as it comes in the time: log probabilities of `ids` `(n, k)`, float32 `(done, k)`, and the likeliest tokens
        `(done,)`; from a fresh process."""

    @abstractmethod
    def continued(self, folder: Path, prompts: Any, new_tokens: int) -> list[list[int]]:
        """How a package goes on greedily after each of the prompts of token ids; it may stop. From a fresh process."""

    @abstractmethod
    def spoken(self, folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
        """The package's token ids of each text, its chat template's text for each list of messages, and its stop ids.

        In a fresh process with a time limit, since a template is a program. Where the package has no answer, a line
        that says why stands for it.
        """

    def spoken_by_others(
        self, folder: Path, texts: list[str], chats: list[Any]
    ) -> tuple[list[Any], list[Any], list[int]]:
        """The same by the runtime's own tokenizer, for whoever loads a package without bitfleet."""
        return self.spoken(folder, texts, chats)

    @abstractmethod
    def generate(self, folder: Path, prompt: str, max_tokens: int) -> Iterator[str]:
        """The answer to `prompt`, piece by piece."""

    @abstractmethod
    def launch(self, folder: Path) -> str:
        """The command that runs a package with this runtime."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the runtime's packages; ImportError, with what to install, where they are missing."""
