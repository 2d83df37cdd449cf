"""llama.cpp as bitfleet sees it: what a GGUF file holds and how it is written and checked; `served` runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.runtimes.base import Piece, Progress
from planner.runtimes.llamacpp import architectures, formats, tensors
from planner.runtimes.llamacpp.served import Served
from planner.runtimes.llamacpp.serving import RUNTIME, WEIGHTS
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec, UnitSpec


class LlamaCpp(Served):
    """One GGUF file, on a CPU."""

    name = RUNTIME
    device_kinds = ("cpu",)
    activations = "int8"  # of blocks of 32 values, with a scale each
    deploys = ("scales", "codes")

    def refusal(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> str | None:
        if choice.kept is not None:
            return "llama.cpp reads feed-forward blocks of one width for all layers, so none is pruned"
        for linear in unit.linears:
            reason = formats.refusal(choice, linear.in_features)
            if reason is not None:
                return reason
        return None

    def model_refusal(self, spec: ModelSpec) -> str | None:
        return architectures.refusal(spec) or tensors.refusal(spec)

    def disk_bytes(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> int:
        return tensors.unit_bytes(unit, choice)

    def fixed_disk_bytes(self, spec: ModelSpec, workload: Any) -> int:
        return tensors.float_bytes(spec)

    def description_bytes(self, spec: ModelSpec, model_dir: Path) -> int:
        from planner.runtimes.llamacpp import metadata

        return metadata.head_bytes(spec, model_dir)

    def write(
        self, files: Any, subnet: Subnet, workload: Any, threads: int | None, folder: Path,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        from planner.runtimes.llamacpp.export import write_model

        write_model(files, subnet, workload.context, threads, folder, progress)

    def weight_files(self) -> tuple[str, ...]:
        return (WEIGHTS,)

    def check_package(self, folder: Path, sizes: Mapping[str, int], workload: Any) -> None:
        from planner.runtimes.llamacpp import safety

        safety.check(folder, sizes, workload.context)

    def pieces(self, folder: Path, sizes: Mapping[str, int]) -> dict[str, tuple[Piece, ...]]:
        from planner.runtimes.llamacpp.pieces import pieces

        return {**super().pieces(folder, sizes), WEIGHTS: pieces(folder / WEIGHTS, sizes[WEIGHTS])}

    def launch(self, folder: Path) -> str:
        return f"llama-cli -m {folder / WEIGHTS} -cnv --jinja --temp 0"
