"""A package for vLLM: a compressed-tensors folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from planner.request import Workload
from planner.runtimes.base import Progress
from planner.runtimes.caches import cache_named
from planner.runtimes.folder_runtime import FolderPackages
from planner.runtimes.vllm.holds import CACHES, FUSED
from supernet.space import Subnet

if TYPE_CHECKING:
    from planner.runtimes.source import WeightSource


class VllmPackages(FolderPackages):
    """vLLM reads it as it is, and so does transformers."""

    def write(
        self, files: WeightSource, subnet: Subnet, workload: Workload, threads: int | None, folder: Path,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        from planner.runtimes.vllm.write import write_model

        write_model(files, subnet, workload.context, folder, progress)

    def check(self, folder: Path, sizes: Mapping[str, int], workload: Workload) -> None:
        from planner.runtimes import folder_safety
        from planner.runtimes.vllm import safety

        folder_safety.check(folder, sizes, "vllm", FUSED, workload.context, safety.shapes)

    def launch(self, folder: Path, workload: Workload) -> str:
        cache = cache_named(workload.kv_cache, CACHES, "vllm")
        return f"vllm serve {folder}" + (f" --kv-cache-dtype {cache.name}" if cache.rounds else "")
