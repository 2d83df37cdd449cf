"""A package for MLX: an mlx-lm folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from planner.request import Workload
from planner.runtimes.base import Progress
from planner.runtimes.caches import cache_named
from planner.runtimes.folder_runtime import FolderPackages
from planner.runtimes.mlx.holds import ACTIVATIONS, CACHES
from supernet.space import Subnet

if TYPE_CHECKING:
    from planner.runtimes.source import WeightSource


class MlxPackages(FolderPackages):
    """mlx-lm reads it as it is."""

    def write(
        self, files: WeightSource, subnet: Subnet, workload: Workload, threads: int | None, folder: Path,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        from planner.runtimes.mlx.write import write_model

        write_model(files, subnet, workload.context, folder, progress)

    def check(self, folder: Path, sizes: Mapping[str, int], workload: Workload) -> None:
        from planner.runtimes import folder_safety
        from planner.runtimes.mlx import safety

        folder_safety.check(folder, sizes, "mlx", ACTIVATIONS, workload.context, safety.shapes)

    def launch(self, folder: Path, workload: Workload) -> str:
        cache = cache_named(workload.kv_cache, CACHES, "mlx")
        if not cache.rounds:
            return f"mlx_lm.chat --model {folder}"
        kept = f"--kv-bits {cache.name.removeprefix('q')} --quantized-kv-start 0"  # unasked, the first 5000 stay floats
        return f"mlx_lm.generate --model {folder} --prompt PROMPT {kept}"
