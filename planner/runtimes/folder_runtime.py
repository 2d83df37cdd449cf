"""What runtimes have in common whose packages are Hugging Face folders, and which bitfleet runs nothing of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from planner.request import Workload
from planner.runtimes.base import FLOAT, Engine, LatencyItem, MemoryItem, Piece, Runtime
from planner.runtimes.by_bandwidth import Usual, latency_items, memory_items
from planner.runtimes.model_folder import FLOAT_BYTES, GENERATION
from planner.runtimes.spoken import ids_and_chats
from planner.runtimes.tensor_file import WEIGHTS, Tensor, head_bytes, pieces
from planner.tokens import token_ids
from profiles.device import DeviceProfile
from records.reading import read_foreign
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec, UnitSpec


class FolderRuntime(Runtime):
    """A member says which tensors a unit becomes, and of how many parts a packed matrix is at most."""

    activations = FLOAT
    deploys = ("scales", "codes")
    usual: ClassVar[Usual]
    parts: ClassVar[int]

    @abstractmethod
    def tensors(self, unit: UnitSpec, choice: Choice) -> tuple[Tensor, ...]:
        """The tensors of a unit in the weight file."""

    def disk_bytes(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> int:
        return sum(tensor.bytes for tensor in self.tensors(unit, choice))

    def fixed_disk_bytes(self, spec: ModelSpec, workload: Workload) -> int:
        """The header, norms and biases."""
        return head_bytes(spec, self.parts) + spec.float_parameters * FLOAT_BYTES

    def memory_items(
        self, spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile
    ) -> tuple[MemoryItem, ...]:
        return memory_items(spec, workload, self._sizes(spec, subnet), self.usual)

    def latency_items(
        self, spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile, phase: str
    ) -> tuple[LatencyItem, ...]:
        return latency_items(spec, workload, device, phase, self._sizes(spec, subnet), self.usual)

    def _sizes(self, spec: ModelSpec, subnet: Subnet) -> dict[str, int]:
        return {unit.name: self.disk_bytes(spec, unit, subnet[unit.name]) for unit in spec.units}

    def weight_files(self) -> tuple[str, ...]:
        return (WEIGHTS,)

    def pieces(self, folder: Path, sizes: Mapping[str, int]) -> dict[str, tuple[Piece, ...]]:
        return {**super().pieces(folder, sizes), WEIGHTS: pieces(folder / WEIGHTS)}

    def spoken(self, folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
        ids, rendered = ids_and_chats(folder, texts, chats)
        return ids, rendered, token_ids(read_foreign(folder / GENERATION).get("eos_token_id"))

    def versions(self) -> dict[str, str]:
        """Nothing of the runtime is needed to write what it loads."""
        return {}

    def engine(self) -> Engine | None:
        return None
