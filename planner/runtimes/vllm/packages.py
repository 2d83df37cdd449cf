"""A package for vLLM: a compressed-tensors folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planner.request import Workload
from planner.runtimes.base import CardShare
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
        """All that vLLM would choose otherwise; the share of a GPU is a plan's (`command`)."""
        cache = cache_named(workload.kv_cache, CACHES, "vllm")
        said = f"vllm serve {folder} --max-model-len {workload.context} --max-num-seqs {workload.batch}"
        several = f" --tensor-parallel-size {workload.gpus}" if workload.gpus > 1 else ""
        return said + several + (f" --kv-cache-dtype {cache.name}" if cache.rounds else "")

    def command(self, folder: Path, workload: Workload, share: CardShare | None) -> str:
        known = "" if share is None else f" --gpu-memory-utilization {share.utilization:.4g}"
        return self.launch(folder, workload) + known
