"""A package for onnxruntime-genai: a graph, its weights, settings and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from planner.chat import Messages
from planner.request import Workload
from planner.runtimes.base import PackageFormat, Piece, Progress
from planner.runtimes.onnxruntime.cache import cache_of
from planner.runtimes.onnxruntime.installed import check_installed
from planner.runtimes.spoken import Spoken
from supernet.space import Subnet

if TYPE_CHECKING:
    from planner.runtimes.source import WeightSource


class OnnxPackages(PackageFormat):
    """Each is loaded with `bitfleet run`."""

    weight_files = ("model.onnx.data",)

    def write(
        self, files: WeightSource, subnet: Subnet, workload: Workload, threads: int | None, folder: Path,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        check_installed()
        from planner.runtimes.onnxruntime.export import write_model

        cache = cache_of(workload)
        write_model(files, subnet, workload.context, threads, folder, progress, workload.batch, cache)

    def check(self, folder: Path, sizes: Mapping[str, int], workload: Workload) -> None:
        from planner.runtimes.onnxruntime import safety

        safety.check(folder, sizes, workload.context, cache_of(workload))

    def pieces(self, folder: Path, sizes: Mapping[str, int]) -> dict[str, tuple[Piece, ...]]:
        from planner.runtimes.onnxruntime import safety
        from planner.runtimes.onnxruntime.pieces import pieces

        graph = memoryview((folder / safety.GRAPH).read_bytes())
        return {**super().pieces(folder, sizes), safety.WEIGHTS: pieces(graph, sizes[safety.WEIGHTS])}

    def spoken(self, folder: Path, texts: Sequence[str], chats: Sequence[Messages]) -> Spoken:
        from planner.runtimes.onnxruntime.generate import spoken_here

        return spoken_here(folder, texts, chats)

    def launch(self, folder: Path, workload: Workload) -> str:
        return f"bitfleet run {folder} PROMPT"
