"""MLX as bitfleet sees it: what loads, what it is estimated to cost, how it is written and started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.runtimes.base import FLOAT, LatencyItem, MemoryItem, Piece, Progress
from planner.runtimes.by_bandwidth import Usual, latency_items, memory_items
from planner.runtimes.mlx import holds, sizes
from planner.runtimes.tensor_file import WEIGHTS, pieces
from planner.runtimes.without_engine import WithoutEngine
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec, UnitSpec

# Python, Metal's kernels and the cache of freed buffers; mlx-lm reads prompts in pieces of 512 tokens by default. No
# datasheet gives the compute of these GPUs: it is about 30 operations for each byte of bandwidth.
USUAL = Usual(process_bytes=500_000_000, step_ms=0.5, layer_ms=0.02, chunk_tokens=512, ops_per_byte=30.0)


class Mlx(WithoutEngine):
    """A folder for mlx-lm on Apple silicon."""

    name = "mlx"
    device_kinds = ("cpu",)  # a Mac's profile is of its processor, and the GPU shares its memory
    activations = FLOAT
    deploys = ("scales", "codes")

    def refusal(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> str | None:
        return holds.refusal(unit, choice)

    def device_refusal(self, device: Any) -> str | None:
        return super().device_refusal(device) or holds.device_refusal(device)

    def model_refusal(self, spec: ModelSpec) -> str | None:
        return holds.model_refusal(spec)

    def disk_bytes(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> int:
        return sizes.unit_bytes(unit, choice)

    def fixed_disk_bytes(self, spec: ModelSpec, workload: Any) -> int:
        return sizes.fixed_bytes(spec)

    def memory_items(self, spec: ModelSpec, subnet: Subnet, workload: Any, device: Any) -> tuple[MemoryItem, ...]:
        floats = spec.float_parameters * sizes.FLOAT_BYTES
        return memory_items(spec, subnet, workload, sizes.unit_bytes, floats, USUAL)

    def latency_items(
        self, spec: ModelSpec, subnet: Subnet, workload: Any, device: Any, phase: str
    ) -> tuple[LatencyItem, ...]:
        return latency_items(spec, subnet, workload, device, phase, sizes.unit_bytes, USUAL)

    def write(
        self, files: Any, subnet: Subnet, workload: Any, threads: int | None, folder: Path,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        from planner.runtimes.mlx.write import write_model

        write_model(files, subnet, workload.context, folder, progress)

    def weight_files(self) -> tuple[str, ...]:
        return (WEIGHTS,)

    def check_package(self, folder: Path, listed: Mapping[str, int], workload: Any) -> None:
        from planner.runtimes import folder_safety
        from planner.runtimes.mlx import safety

        folder_safety.check(folder, listed, self.name, holds.ACTIVATIONS, workload.context, safety.shapes)

    def pieces(self, folder: Path, listed: Mapping[str, int]) -> dict[str, tuple[Piece, ...]]:
        return {**super().pieces(folder, listed), WEIGHTS: pieces(folder / WEIGHTS)}

    def launch(self, folder: Path) -> str:
        return f"mlx_lm.chat --model {folder}"
