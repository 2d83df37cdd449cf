"""A package for llama.cpp: one GGUF file, and what other programs need beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from planner.chat import Messages
from planner.request import Workload
from planner.runtimes.base import PackageFormat, Piece, Progress
from planner.runtimes.llamacpp.serving import WEIGHTS, cache_of
from planner.runtimes.spoken import Spoken
from supernet.space import Subnet

if TYPE_CHECKING:
    from planner.runtimes.source import WeightSource


class LlamaPackages(PackageFormat):
    """The GGUF file alone is enough for llama.cpp and for what is built on it."""

    weight_files = (WEIGHTS,)

    def write(
        self, files: WeightSource, subnet: Subnet, workload: Workload, threads: int | None, folder: Path,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        from planner.runtimes.llamacpp.export import write_model

        cache, layers = cache_of(workload), workload.gpu_layers
        write_model(files, subnet, workload.context, threads, folder, progress, cache, layers)

    def check(self, folder: Path, sizes: Mapping[str, int], workload: Workload) -> None:
        from planner.runtimes.llamacpp import safety

        safety.check(folder, sizes, workload.context, cache_of(workload), workload.gpu_layers)

    def pieces(self, folder: Path, sizes: Mapping[str, int]) -> dict[str, tuple[Piece, ...]]:
        from planner.runtimes.llamacpp.pieces import pieces

        return {**super().pieces(folder, sizes), WEIGHTS: pieces(folder / WEIGHTS, sizes[WEIGHTS])}

    def spoken(self, folder: Path, texts: Sequence[str], chats: Sequence[Messages]) -> Spoken:
        from planner.runtimes.llamacpp.fresh import spoken_here

        return spoken_here(folder, texts, chats)

    def launch(self, folder: Path, workload: Workload) -> str:
        cache = cache_of(workload)
        kept = f" -ctk {cache.name} -ctv {cache.name}" if cache.rounds else ""
        said = f" -fa on{kept}" if cache.rounds or workload.gpu_layers else ""
        placed = f" -c {workload.context} -ngl {workload.gpu_layers}" if workload.gpu_layers else ""
        return f"llama-cli -m {folder / WEIGHTS} -cnv --jinja --temp 0{said}{placed}"
