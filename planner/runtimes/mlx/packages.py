"""A package for MLX: an mlx-lm folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planner.request import Workload
from planner.runtimes.caches import cache_named
from planner.runtimes.folder_runtime import FolderPackages
from planner.runtimes.mlx.holding import ACTIVATIONS, CACHES

if TYPE_CHECKING:
    from planner.runtimes.folder_writing import Layout


class MlxPackages(FolderPackages):
    """mlx-lm reads it as it is."""

    architectures = tuple(ACTIVATIONS)

    def layout(self) -> Layout:
        from planner.runtimes.mlx.layout import LAYOUT

        return LAYOUT

    def launch(self, folder: Path, workload: Workload) -> str:
        cache = cache_named(workload.kv_cache, CACHES, "mlx")
        if not cache.rounds:
            return f"mlx_lm.chat --model {folder}"
        kept = f"--kv-bits {cache.name.removeprefix('q')} --quantized-kv-start 0"  # unasked, the first 5000 stay floats
        return f"mlx_lm.generate --model {folder} --prompt PROMPT {kept}"
