"""MLX as bitfleet sees it: what loads, what it is estimated to cost, how it is written and started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.request import Workload
from planner.runtimes.base import Progress
from planner.runtimes.by_bandwidth import Usual
from planner.runtimes.folder_runtime import FolderRuntime
from planner.runtimes.mlx import holds
from planner.runtimes.mlx import tensors as layout
from planner.runtimes.tensor_file import Tensor
from profiles.device import DeviceProfile
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec, UnitSpec


class Mlx(FolderRuntime):
    """A folder for mlx-lm on Apple silicon."""

    name = "mlx"
    device_kinds = ("cpu",)  # a Mac's profile is of its processor, and the GPU shares its memory
    # Python, Metal's kernels and the cache of freed buffers; mlx-lm reads prompts in pieces. No datasheet gives the
    # compute of these GPUs: it is about 30 operations for each byte of bandwidth.
    usual = Usual(process_bytes=500_000_000, step_ms=0.5, layer_ms=0.02, chunk_tokens=512, ops_per_byte=30.0)
    parts = layout.PARTS

    def refusal(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> str | None:
        return holds.refusal(unit, choice)

    def model_refusal(self, spec: ModelSpec) -> str | None:
        return holds.model_refusal(spec)

    def device_refusal(self, device: DeviceProfile) -> str | None:
        return super().device_refusal(device) or holds.device_refusal(device)

    def tensors(self, unit: UnitSpec, choice: Choice) -> tuple[Tensor, ...]:
        return layout.tensors(unit, choice)

    def write(
        self, files: Any, subnet: Subnet, workload: Workload, threads: int | None, folder: Path,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        from planner.runtimes.mlx.write import write_model

        write_model(files, subnet, workload.context, folder, progress)

    def check_package(self, folder: Path, sizes: Mapping[str, int], workload: Workload) -> None:
        from planner.runtimes import folder_safety
        from planner.runtimes.mlx import safety

        folder_safety.check(folder, sizes, self.name, holds.ACTIVATIONS, workload.context, safety.shapes)

    def launch(self, folder: Path) -> str:
        return f"mlx_lm.chat --model {folder}"
