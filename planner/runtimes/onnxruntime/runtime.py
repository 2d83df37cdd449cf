"""ONNX Runtime as bitfleet sees it: what loads, what it costs, how it is written and launched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.request import Workload
from planner.runtimes.base import Engine, LatencyItem, MemoryItem, Piece, Progress, Runtime
from planner.runtimes.onnxruntime import latency, memory, storage
from profiles.device import DeviceProfile
from records.errors import NotInstalledError
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec, UnitSpec

GRIDS = ("int", "sym")
BITS = (2, 4, 8)
TABLE_BITS = (4, 8)
GROUP_SIZES = (16, 32, 64, 128, 256)
ARCHITECTURES = (
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM",
    "Gemma2ForCausalLM", "Gemma3ForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM", "GraniteForCausalLM",
    "NemotronForCausalLM", "OlmoForCausalLM", "SmolLM3ForCausalLM", "Ernie4_5ForCausalLM", "HunYuanDenseV1ForCausalLM",
)  # fmt: skip
# Kinds of rotary embedding that are one table within the model's context.
ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "ntk_alpha")
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "relu2")
HEAD_MULTIPLE = 16  # of a head's values, and of those that rotate: ONNX Runtime's attention takes no others
NOT_PRUNABLE = ("NemotronForCausalLM",)  # its feed-forward blocks have no unit that makes their channels


class OnnxRuntime(Runtime):
    """onnxruntime-genai on CPU, products in `MatMulNBits` with int8 activations."""

    name = "onnxruntime"
    device_kinds = ("cpu",)
    activations = "int8"  # accuracy level 4 of MatMulNBits
    deploys = ("scales", "codes")

    def refusal(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> str | None:
        if choice.grid not in GRIDS:
            return f"ONNX Runtime loads the grids {' and '.join(GRIDS)}, got {choice.grid}"
        if unit.is_table and choice.bits not in TABLE_BITS:
            return f"ONNX Runtime looks tokens up in tables of 4 and 8 bits, got {choice.bits}; train with one of them"
        if choice.kept != 0 and choice.bits not in BITS:
            return f"ONNX Runtime loads 2, 4 and 8 bits, got {choice.bits}; train with one of them"
        if choice.group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            return f"ONNX Runtime loads group sizes {sizes}, got {choice.group_size}"
        if choice.kept != 0 and choice.bits == 2 and choice.group_size in (16, 256):  # a thousand times as slow
            return f"ONNX Runtime has no fast product for 2 bits in groups of {choice.group_size}; use 32, 64 or 128"
        if choice.kept is not None and spec.architecture in NOT_PRUNABLE:
            return f"feed-forward blocks of {spec.architecture} cannot be pruned"
        for linear in unit.linears:
            if linear.in_features % choice.group_size:
                return f"the group size must divide in_features, got {choice.group_size} and {linear.in_features}"
        return None

    def model_refusal(self, spec: ModelSpec) -> str | None:
        if spec.architecture not in ARCHITECTURES:
            return f"the exporter is tested with {', '.join(ARCHITECTURES)}, got {spec.architecture}"
        if spec.features:
            return f"ONNX Runtime's graph of {spec.architecture} has no {spec.features[0]}"
        for kind in spec.ropes:
            if kind not in ROPES:
                return (
                    f"ONNX Runtime's graph has rotary embeddings of the kinds {', '.join(ROPES)}, got rope type {kind}"
                )
        for what, count in (("values of a head", spec.head_dim), ("rotating values of a head", spec.rotary_dim)):
            if count % HEAD_MULTIPLE:
                return f"ONNX Runtime's attention takes {what} in multiples of {HEAD_MULTIPLE}, got {count}"
        for window in spec.windows:
            if window is not None and window < 1:
                return f"a sliding window must let a token see itself, got a window of {window}"
        if spec.activation not in ACTIVATIONS:
            return f"ONNX Runtime's graph has the activations {', '.join(ACTIVATIONS)}, got {spec.activation}"
        return None

    def disk_bytes(self, spec: ModelSpec, unit: UnitSpec, choice: Choice) -> int:
        return storage.unit_bytes(unit, choice)

    def fixed_disk_bytes(self, spec: ModelSpec, workload: Workload) -> int:
        return storage.float_bytes(spec, workload.context)

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
        require()
        from planner.runtimes.onnxruntime.export import write_model

        write_model(files, subnet, workload.context, threads, folder, progress, workload.batch)

    def check_package(self, folder: Path, sizes: Mapping[str, int], workload: Workload) -> None:
        from planner.runtimes.onnxruntime import safety

        safety.check(folder, sizes, workload.context)

    def pieces(self, folder: Path, sizes: Mapping[str, int]) -> dict[str, tuple[Piece, ...]]:
        from planner.runtimes.onnxruntime import safety
        from planner.runtimes.onnxruntime.pieces import pieces

        graph = memoryview((folder / safety.GRAPH).read_bytes())
        return {**super().pieces(folder, sizes), safety.WEIGHTS: pieces(graph, sizes[safety.WEIGHTS])}

    def spoken(self, folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
        from planner.runtimes.onnxruntime.generate import spoken

        return spoken(folder, texts, chats)

    def weight_files(self) -> tuple[str, ...]:
        return ("model.onnx.data",)

    def launch(self, folder: Path) -> str:
        return f"bitfleet run {folder} PROMPT"

    def versions(self) -> dict[str, str]:
        from importlib.metadata import version

        require()
        return {name: version(name) for name in ("onnxruntime", "onnxruntime-genai", "onnx")}

    def engine(self) -> Engine:
        require()
        from planner.runtimes.onnxruntime.engine import OnnxEngine

        return OnnxEngine()


def require() -> None:
    """ImportError, with what to install, where the runtime's packages are missing."""
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxruntime", "onnxruntime_genai") if find_spec(name) is None]
    if missing:
        names = [name.replace("_", "-") for name in missing]
        raise NotInstalledError(f"the onnxruntime runtime needs {', '.join(names)}; run: pip install {' '.join(names)}")
