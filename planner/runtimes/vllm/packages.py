"""A package for vLLM: a compressed-tensors folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planner.request import Workload
from planner.runtimes.caches import cache_named
from planner.runtimes.folder_runtime import FolderPackages
from planner.runtimes.vllm.holding import CACHES, FUSED

if TYPE_CHECKING:
    from planner.runtimes.folder_writing import Layout


class VllmPackages(FolderPackages):
    """vLLM reads it as it is, and so does transformers."""

    architectures = tuple(FUSED)

    def layout(self) -> Layout:
        from planner.runtimes.vllm.layout import LAYOUT

        return LAYOUT

    def launch(self, folder: Path, workload: Workload) -> str:
        cache = cache_named(workload.kv_cache, CACHES, "vllm")
        return f"vllm serve {folder}" + (f" --kv-cache-dtype {cache.name}" if cache.rounds else "")
