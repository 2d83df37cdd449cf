"""What runtimes have in common whose packages are Hugging Face folders."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from planner.chat import Messages
from planner.request import Workload
from planner.runtimes.base import Holding, LatencyItem, MemoryItem, PackageFormat, Piece, Pricing, Progress
from planner.runtimes.by_bandwidth import Usual, latency_items, memory_items
from planner.runtimes.caches import CacheType
from planner.runtimes.model_folder import FLOAT_BYTES, GENERATION
from planner.runtimes.spoken import Spoken, spoken
from planner.runtimes.tensor_file import WEIGHTS, Tensor, head_bytes, pieces
from planner.tokens import token_ids
from profiles.folder_shares import FIGURES, FITTED, Reading
from records.reading import read_foreign
from supernet.space import Choice, Subnet
from supernet.spec import UnitSpec

if TYPE_CHECKING:
    from planner.runtimes.folder_writing import Layout
    from planner.runtimes.source import WeightSource


class FolderHolding(Holding):
    """A member says which tensors a unit becomes, and of how many `parts` a packed matrix is at most."""

    parts: int

    @abstractmethod
    def tensors(self, unit: UnitSpec, choice: Choice) -> tuple[Tensor, ...]:
        """The tensors of a unit in the weight file."""

    @abstractmethod
    def reading(self, unit: UnitSpec, choice: Choice) -> Reading:
        """What a token reads of a unit, as published speeds tell kinds of weights apart."""

    def unit_bytes(self, unit: UnitSpec, choice: Choice) -> int:
        return sum(tensor.bytes for tensor in self.tensors(unit, choice))

    def rest_bytes(self, workload: Workload, model_dir: Path) -> int:
        """The header, norms and biases; what describes the model is files of its own."""
        return head_bytes(self.spec, self.parts) + self.spec.float_parameters * FLOAT_BYTES


@dataclass(frozen=True)
class BandwidthPricing(Pricing):
    """By bytes over bandwidth, where nothing of the runtime was measured; what a unit weighs is what it is on disk."""

    holding: FolderHolding
    usual: Usual
    runtime: str
    unknown: str
    """Of which weights no speed was published, and what stands for one."""
    cache: CacheType

    def memory(self, subnet: Subnet) -> tuple[MemoryItem, ...]:
        return memory_items(self.spec, self.workload, self.cache, self._sizes(subnet), self.usual)

    def latency(self, subnet: Subnet, phase: str) -> tuple[LatencyItem, ...]:
        cache, readings = self.cache, {u.name: self.holding.reading(u, subnet[u.name]) for u in self.spec.units}
        return latency_items(self.spec, self.workload, self.device, phase, cache, readings, self.runtime, self.usual)

    def rests_on(self) -> str | None:
        if self.runtime not in FIGURES:
            return None
        half = FITTED.half[self.runtime]
        return (
            f"time per token rests on {FIGURES[self.runtime]} decode speeds that others published of {self.runtime} on "
            f"six devices: 8 of 10 within {math.exp(-half):.2f} to {math.exp(half):.2f} of it; {self.unknown}"
        )

    def _sizes(self, subnet: Subnet) -> dict[str, int]:
        return {unit.name: self.holding.unit_bytes(unit, subnet[unit.name]) for unit in self.spec.units}


class FolderPackages(PackageFormat):
    """One safetensors file of weights with its index, configs and the tokenizer."""

    weight_files = (WEIGHTS,)
    architectures: ClassVar[tuple[str, ...]]  # of which packages may be loaded

    @abstractmethod
    def layout(self) -> Layout:
        """How the folder holds a subnet; imported where it is asked for, as planning needs no arrays."""

    def write(
        self, files: WeightSource, subnet: Subnet, workload: Workload, threads: int | None, folder: Path,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        from planner.runtimes.folder_writing import write_folder

        write_folder(self.layout(), files, subnet, workload.context, folder, progress)

    def check(self, folder: Path, sizes: Mapping[str, int], workload: Workload) -> None:
        from planner.runtimes import folder_safety

        layout = self.layout()
        folder_safety.check(folder, sizes, layout.runtime, self.architectures, workload.context, layout.shapes)

    def pieces(self, folder: Path, sizes: Mapping[str, int]) -> dict[str, tuple[Piece, ...]]:
        return {**super().pieces(folder, sizes), WEIGHTS: pieces(folder / WEIGHTS)}

    def spoken(self, folder: Path, texts: Sequence[str], chats: Sequence[Messages]) -> Spoken:
        return spoken(folder, texts, chats, token_ids(read_foreign(folder / GENERATION).get("eos_token_id")))
