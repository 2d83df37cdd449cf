"""What a runtime is, in parts: what it holds, what a subnet costs there, its packages, the engine that runs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from planner.chat import Messages
from planner.checks import PASS, Check
from planner.request import MOST_SEQUENCES, Workload
from planner.runtimes.caches import FLOAT16, CacheType, cache_named
from planner.runtimes.spoken import Spoken
from profiles.device import DeviceProfile
from records.errors import InputError
from records.reading import check
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec, UnitSpec
from supernet.ties import Groups, tied

if TYPE_CHECKING:
    from planner.runtimes.engine import Engine
    from planner.runtimes.source import WeightSource
    from supernet.keys_values import Kept

EXACT = "exact"  # arithmetic on the model's shapes
MEASURED = "measured"  # from the profile's measurements of this runtime on this device
INTERPOLATED = "interpolated"  # between measurements of other sizes
MODELLED = "modelled"  # by a rule that held wherever it was checked, on other devices
ESTIMATE = "estimate"  # from datasheet numbers or the runtime's usual costs; nothing on the device was measured
BASES = (EXACT, MEASURED, INTERPOLATED, MODELLED, ESTIMATE)  # strongest first


def weakest(bases: Iterable[str]) -> str:
    """What a sum rests on: the weakest of its parts."""
    return max(bases, key=BASES.index, default=EXACT)


def _check_basis(basis: str) -> None:
    """A plan is a file that anybody may edit."""
    if basis not in BASES:
        raise InputError(f"a basis is one of {', '.join(BASES)}, got {basis!r:.80}")


DEVICE, HOST = "device", "host"
"""The pools of memory: the device's own, and that of the machine which a GPU is in."""

FLOAT = "float"  # activations that are not rounded
PREFILL = "prefill"
DECODE = "decode"

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0 to 1."""


@dataclass(frozen=True)
class MemoryItem:
    """Bytes of peak memory in a `pool`. `unit` names the unit that a choice changes them for; None for what no choice
    changes."""

    name: str
    bytes: int
    basis: str
    unit: str | None = None
    pool: str = DEVICE

    def __post_init__(self) -> None:
        _check_basis(self.basis)
        if self.pool not in (DEVICE, HOST):
            raise InputError(f"a pool of memory is {DEVICE} or {HOST}, got {self.pool!r:.80}")


@dataclass(frozen=True)
class LatencyItem:
    """Milliseconds of one forward pass. `unit` as in MemoryItem; `spread` is the relative half-width of the number."""

    name: str
    ms: float
    basis: str
    unit: str | None = None
    spread: float = 0.0

    def __post_init__(self) -> None:
        _check_basis(self.basis)

    @classmethod
    def of_products(
        cls, unit: str, parts: Sequence[tuple[float, float, float, str]], factor: float, more: float
    ) -> LatencyItem:
        """Of a unit's products: how many there are of each, its ms, spread and basis. All take `factor` times so long,
        of which `more` is uncertain besides."""
        total = sum(count * ms for count, ms, _, _ in parts)
        spread = sum(count * ms * spread for count, ms, spread, _ in parts) / total + more if total else 0.0
        return cls(unit, factor * total, weakest(basis for *_, basis in parts), unit, spread)


@dataclass(frozen=True)
class CardShare:
    """What a runtime takes of each GPU before it serves anybody: `utilization` of all memory there, of which
    `pool_bytes` are left for keys and values, in `blocks` of `block_tokens`. So many `sequences` of the longest context
    fit into these at once."""

    utilization: float
    pool_bytes: int
    blocks: int
    block_tokens: int
    sequences: float

    def __post_init__(self) -> None:
        check("utilization", self.utilization, float, least=0, above=True)
        if self.utilization > 1:
            raise InputError(f"utilization is a share of at most 1, got {self.utilization}")
        for name in ("pool_bytes", "blocks", "block_tokens"):
            check(name, getattr(self, name), int, least=1)
        check("sequences", self.sequences, float, least=0)


@dataclass(frozen=True)
class Piece:
    """`bytes` of a file from `offset` on. `name` is the tensor's that they are, empty for whatever else."""

    name: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class Holding(ABC):
    """What a runtime holds of a model: what of it can be loaded, and what that takes on disk."""

    spec: ModelSpec

    @abstractmethod
    def refusal(self) -> str | None:
        """Why a model of this architecture cannot be exported, or None if it can."""

    @abstractmethod
    def unit_refusal(self, unit: UnitSpec, choice: Choice) -> str | None:
        """Why the runtime cannot load `unit` at `choice`, or None if it can; of a model that is not refused."""

    def windows_refusal(self) -> str | None:
        """Why a runtime that computes sliding windows cannot compute the model's."""
        for window in self.spec.windows:
            if window is not None and window < 1:
                return f"a sliding window must let a token see itself, got a window of {window}"
        return None

    def groups_refusal(self, unit: UnitSpec, choice: Choice) -> str | None:
        """Why rows of the unit's are not whole groups."""
        for linear in unit.linears:
            if linear.in_features % choice.group_size:
                return f"the group size must divide in_features, got {choice.group_size} and {linear.in_features}"
        return None

    def split_refusal(self, gpus: int) -> str | None:
        """Why the runtime cannot divide the model over so many GPUs, or None if it can."""
        return None if gpus == 1 else "it has a whole model on one device"

    def part_refusal(self, unit: UnitSpec, choice: Choice, gpus: int) -> str | None:
        """Why no GPU could have its part of `unit` at `choice`, of a model that can be divided over so many."""
        return None

    def cache_refusal(self, cache: CacheType) -> str | None:
        """Why the runtime cannot keep the model's keys and values so, or None if it can."""
        if self.spec.head_dim % cache.values:
            return f"its heads of {self.spec.head_dim} values must be a multiple of the {cache.values} of a block"
        return None

    @abstractmethod
    def unit_bytes(self, unit: UnitSpec, choice: Choice) -> int:
        """Exact bytes that the unit takes in the weight files."""

    @abstractmethod
    def rest_bytes(self, workload: Workload, model_dir: Path) -> int:
        """Exact bytes in the weight files that no choice changes: norms, biases, rotary tables, and what describes the
        model in the folder `model_dir` (its settings and its tokenizer) where that is in the weight files too.

        InputError where the runtime cannot be told of what is in the folder.
        """


@dataclass(frozen=True)
class Pricing(ABC):
    """What a runtime costs on a device that serves a workload, for any subnet of a model."""

    spec: ModelSpec
    workload: Workload
    device: DeviceProfile

    @abstractmethod
    def memory(self, subnet: Subnet) -> tuple[MemoryItem, ...]:
        """Peak memory of a process that serves the workload, itemised."""

    @abstractmethod
    def latency(self, subnet: Subnet, phase: str) -> tuple[LatencyItem, ...]:
        """One forward pass, itemised: of the whole prompt (PREFILL), or of one token after it (DECODE). InputError for
        a device of which no speed is known."""

    def share(self, subnet: Subnet, limit_bytes: int) -> CardShare | None:
        """What the runtime takes of each GPU within a limit of its memory where it takes that at once, whatever it
        serves; None for a runtime that does not."""
        return None

    def rests_on(self) -> str | None:
        """What its time per token rests on where nothing of it was measured on the device, in a line; None where there
        is no more to say than that."""
        return None


class PackageFormat(ABC):
    """A runtime's packages: how they are written, and what may be read of one without the runtime."""

    weight_files: ClassVar[tuple[str, ...]]
    """Names of the files whose sizes `Holding.unit_bytes` and `Holding.rest_bytes` sum to."""

    @abstractmethod
    def write(
        self, files: WeightSource, subnet: Subnet, workload: Workload, threads: int | None, folder: Path,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        """Write everything the runtime loads into the existing, empty `folder`; with as many `threads` as the runtime
        would choose where that is None. The same arguments give the same bytes. `subnet` is in the units of `files`;
        InputError where units differ that the runtime ties."""

    @abstractmethod
    def check(self, folder: Path, sizes: Mapping[str, int], workload: Workload) -> None:
        """InputError, naming it, for what an exporter does not write: a package may be a stranger's, and what is loaded
        from it must not run code, leave the folder or never end. `sizes` are the listed files' bytes, by name; the plan
        serves `workload`."""

    def pieces(self, folder: Path, sizes: Mapping[str, int]) -> dict[str, tuple[Piece, ...]]:
        """Of each file of a checked package what it consists of, in order and without gaps: what two packages have in
        common is copied piece by piece. `sizes` as above; a file is one piece unless its tensors are known."""
        return {name: (Piece("", 0, size),) if size else () for name, size in sizes.items()}

    @abstractmethod
    def spoken(self, folder: Path, texts: Sequence[str], chats: Sequence[Messages]) -> Spoken:
        """What the model's own tokenizer and chat template, which the package brings, make of texts and chats; in a
        fresh process with a time limit, since a template is a program."""

    @abstractmethod
    def launch(self, folder: Path, workload: Workload) -> str:
        """The command that runs a package with this runtime, as the workload asks."""

    def command(self, folder: Path, workload: Workload, share: CardShare | None) -> str:
        """The same for a plan that knows which share of each GPU the runtime takes."""
        return self.launch(folder, workload)


class Runtime(ABC):
    """One inference runtime.

    Nothing here needs the runtime itself, and planning imports no torch. What runs packages is its `engine`, which is
    not on every machine: without one a runtime still plans and exports, and what was not run is said to be unchecked.
    """

    name: ClassVar[str]
    device_kinds: ClassVar[tuple[str, ...]]  # the kinds of device profile it runs on
    activations: ClassVar[str]  # what its products read: int8, or FLOAT
    deploys: ClassVar[tuple[str, ...]]  # how an adapter may reach it: folded into the `scales`, as a `side` path
    packages: ClassVar[PackageFormat]
    caches: ClassVar[tuple[CacheType, ...]] = (FLOAT16,)  # of keys and values, first the one that it takes unasked
    most_sequences: ClassVar[int] = MOST_SEQUENCES  # that it serves at once
    pinned: ClassVar[Mapping[str, str]] = {}  # the versions that its packages are for, where they run in no others

    def cache(self, workload: Workload) -> CacheType:
        """How it keeps the keys and values of a workload. InputError, with the types that it has, for another."""
        return cache_named(workload.kv_cache, self.caches, self.name)

    def kept(self, cache: CacheType, spec: ModelSpec, model: Any, windows: Sequence[Any]) -> Kept:
        """How keys and values of a torch `model` come back from a cache of a type that rounds. `windows` of token ids
        are text to take constants from. Torch is imported here; InputError where it is not known."""
        raise InputError(f"{self.name} does not say how a cache of {cache.name} rounds")

    def device_refusal(self, device: DeviceProfile) -> str | None:
        """Why this runtime does not run on a device, whatever the choices are, or None if it does."""
        kinds = self.device_kinds
        return None if device.kind in kinds else f"{self.name} runs on {' and '.join(kinds)}, not on {device.kind}"

    def usable_bytes(self, device: DeviceProfile, gpus: int = 1) -> int:
        """The most that it takes of a device, or of each of several alike, unless it is told to take more."""
        return device.usable_bytes

    def device_note(self, device: DeviceProfile) -> str:
        """What a list of devices says of one that is not refused: what runs there, or why its speed is not known."""
        return ""

    def placements(self, spec: ModelSpec, device: DeviceProfile) -> tuple[int, ...]:
        """How many layers of a model may be on a device while the others are on its host, as the runtime counts them,
        ascending: what `Workload.gpu_layers` may be. () where a device has no layers of its own to count."""
        return ()

    def ties(self, spec: ModelSpec) -> Groups:
        """The units that are computed as one product and share one choice here; none of those that are tied already."""
        return ()

    def tied(self, spec: ModelSpec) -> ModelSpec:
        """The model in the units that `holding` and `pricing` are asked in."""
        return tied(spec, self.ties(spec))

    def stock(self, spec: ModelSpec, space: SearchSpace) -> tuple[str, Subnet] | None:
        """What the runtime's own tools make of a model where nothing else is asked: a name, and the subnet of `space`
        that has its types. None where the space has them not, or nothing is known of such tools."""
        return None

    @abstractmethod
    def holding(self, spec: ModelSpec) -> Holding:
        """What it holds of a model."""

    @abstractmethod
    def pricing(self, spec: ModelSpec, workload: Workload, device: DeviceProfile) -> Pricing:
        """What it costs there."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the packages that `write` needs; NotInstalledError, with what to install, where they are
        missing."""

    def checks(self) -> Iterator[Check]:
        """Whether what runs or reads its packages works on this machine, by doing that in small: rows of `bitfleet
        doctor`."""
        yield Check(f"runtime {self.name}", PASS, f"brought by {type(self).__module__}")

    def engine(self) -> Engine | None:
        """What runs packages here; None where bitfleet runs none of its packages. NotInstalledError, with what to
        install, where it is not on this machine."""
        return None
