"""llama.cpp as bitfleet sees it: what a GGUF file holds, what it costs, how it is written and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.request import Workload
from planner.runtimes.base import Engine, LatencyItem, MemoryItem, Piece, Progress, Runtime
from planner.runtimes.llamacpp import architectures, formats, latency, memory, tensors
from planner.runtimes.llamacpp.serving import LIBRARY, RUNTIME, VERSION, WEIGHTS
from profiles.device import DeviceProfile
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec, UnitSpec


class LlamaCpp(Runtime):
    """One GGUF file on a CPU, products with int8 activations, keys and values as float16."""

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

    def fixed_disk_bytes(self, spec: ModelSpec, workload: Workload) -> int:
        return tensors.float_bytes(spec)

    def description_bytes(self, spec: ModelSpec, model_dir: Path) -> int:
        from planner.runtimes.llamacpp import metadata

        return metadata.head_bytes(spec, model_dir)

    def memory_items(
        self, spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile
    ) -> tuple[MemoryItem, ...]:
        return memory.items(spec, subnet, workload, device)

    def latency_items(
        self, spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile, phase: str
    ) -> tuple[LatencyItem, ...]:
        return latency.items(spec, subnet, workload, device, phase)

    def write(
        self, files: Any, subnet: Subnet, workload: Workload, threads: int | None, folder: Path,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        from planner.runtimes.llamacpp.export import write_model

        write_model(files, subnet, workload.context, threads, folder, progress)

    def weight_files(self) -> tuple[str, ...]:
        return (WEIGHTS,)

    def check_package(self, folder: Path, sizes: Mapping[str, int], workload: Workload) -> None:
        from planner.runtimes.llamacpp import safety

        safety.check(folder, sizes, workload.context)

    def pieces(self, folder: Path, sizes: Mapping[str, int]) -> dict[str, tuple[Piece, ...]]:
        from planner.runtimes.llamacpp.pieces import pieces

        return {**super().pieces(folder, sizes), WEIGHTS: pieces(folder / WEIGHTS, sizes[WEIGHTS])}

    def spoken(self, folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
        from planner.runtimes.llamacpp.fresh import spoken

        return spoken(folder, texts, chats)

    def launch(self, folder: Path) -> str:
        return f"llama-cli -m {folder / WEIGHTS} -cnv --jinja --temp 0"

    def versions(self) -> dict[str, str]:
        return {LIBRARY: VERSION}  # the build that packages are for, installed here or not

    def engine(self) -> Engine:
        from planner.runtimes.llamacpp.engine import LlamaEngine
        from planner.runtimes.llamacpp.installed import check_installed

        check_installed()
        return LlamaEngine()
