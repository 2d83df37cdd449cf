"""What ONNX Runtime loads of a model, and what that takes on disk."""

from __future__ import annotations

from pathlib import Path

from planner.request import Workload
from planner.runtimes.base import Holding
from planner.runtimes.caches import CacheType
from planner.runtimes.onnxruntime import storage
from planner.runtimes.onnxruntime.cache import INT8
from supernet.space import Choice
from supernet.spec import UnitSpec

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
NEIGHBOURS = ("Ernie4_5ForCausalLM",)  # whose keys turn in pairs of neighbours, not of halves
NOT_PRUNABLE = ("NemotronForCausalLM",)  # its feed-forward blocks have no unit that makes their channels


class OnnxHolding(Holding):
    """A graph with products in `MatMulNBits`, and one file of weights."""

    def refusal(self) -> str | None:
        spec = self.spec
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
        if (refusal := self.windows_refusal()) is not None:
            return refusal
        if spec.activation not in ACTIVATIONS:
            return f"ONNX Runtime's graph has the activations {', '.join(ACTIVATIONS)}, got {spec.activation}"
        return None

    def unit_refusal(self, unit: UnitSpec, choice: Choice) -> str | None:
        if choice.grid not in GRIDS:
            return f"ONNX Runtime loads the grids {' and '.join(GRIDS)}, got {choice.grid}; train with one of them"
        if unit.is_table and choice.bits not in TABLE_BITS:
            return f"ONNX Runtime looks tokens up in tables of 4 and 8 bits, got {choice.bits}; train with one of them"
        if choice.kept != 0 and choice.bits not in BITS:
            return f"ONNX Runtime loads 2, 4 and 8 bits, got {choice.bits}; train with one of them"
        if choice.group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            return f"ONNX Runtime loads group sizes {sizes}, got {choice.group_size}"
        if choice.kept != 0 and choice.bits == 2 and choice.group_size in (16, 256):  # a thousand times as slow
            return f"ONNX Runtime has no fast product for 2 bits in groups of {choice.group_size}; use 32, 64 or 128"
        if choice.kept is not None and self.spec.architecture in NOT_PRUNABLE:
            return f"feed-forward blocks of {self.spec.architecture} cannot be pruned"
        return self.groups_refusal(unit, choice)

    def cache_refusal(self, cache: CacheType) -> str | None:
        if cache == INT8 and self.spec.architecture in NEIGHBOURS:
            return f"its scales are made for keys that turn in halves, those of {self.spec.architecture} do not"
        return super().cache_refusal(cache)

    def unit_bytes(self, unit: UnitSpec, choice: Choice) -> int:
        return storage.unit_bytes(unit, choice)

    def rest_bytes(self, workload: Workload, model_dir: Path) -> int:
        """Settings and tokenizer are files of their own."""
        return storage.float_bytes(self.spec, workload.context)
