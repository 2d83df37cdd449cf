"""What a compressed-tensors folder holds, what vLLM's loader takes of it, and which kernel runs it on which device.

Read from vLLM 0.32: `compressed_tensors_wNa16` for the layout, `kernels/linear/mixed_precision` for the kernels, and
`packed_modules_mapping` of each model's class for what it fuses. It runs some models by transformers' own code
(`TRANSFORMERS`) and fuses there what it recognizes; each of those was loaded and answered as its subnet does.
"""

from __future__ import annotations

from dataclasses import replace

from planner.runtimes.caches import FLOAT16, CacheType
from planner.runtimes.folder_runtime import FolderHolding
from planner.runtimes.tensor_file import Tensor
from planner.runtimes.vllm import split, tensors
from profiles.device import DeviceProfile
from profiles.folder_shares import FLOAT, PACKED, Reading
from supernet.formats import FORMATS
from supernet.space import Choice
from supernet.spec import EMBEDDING, ModelSpec, UnitSpec
from supernet.ties import Groups, siblings, whole_experts

GRIDS = tuple(name for name, format in FORMATS.items() if format.sides.keys() <= {"scale", "zero"})
MIDDLE = next(name for name in GRIDS if FORMATS[name].symmetric)
BITS = (2, 3, 4, 5, 6, 7, 8)
BITS_WITH_ZEROS = (4, 8)
GROUP_SIZES = (32, 64, 128)
WORD_BITS = 32
CACHES = (FLOAT16, CacheType("fp8", 1, 1))  # unasked it is of the weights' own type
LEAST_CAPABILITY, BFLOAT16_CAPABILITY = 75, 80
MARLIN, HUMMING = "Marlin", "Humming"
MARLIN_RUNS = "4 bits, and 8 without zeros"
# How long Humming's product of one row takes beside its own of 4 bits, by bits (vLLM's pull request 34556).
HUMMING_TIMES = {2: 0.93, 3: 1.02, 5: 1.19, 6: 1.23, 7: 1.29, 8: 1.33}
QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
# What vLLM makes one layer of, by the model's architecture: its parts must agree in everything.
FUSED: dict[str, tuple[tuple[str, ...], ...]] = {
    "LlamaForCausalLM": (QKV, GATE_UP),
    "MistralForCausalLM": (QKV, GATE_UP),
    "Qwen2ForCausalLM": (QKV, GATE_UP),
    "Qwen3ForCausalLM": (QKV, GATE_UP),
    "GemmaForCausalLM": (QKV, GATE_UP),
    "Phi3ForCausalLM": (),
    "GraniteForCausalLM": (QKV, GATE_UP),
    "NemotronForCausalLM": (QKV,),
    "Ernie4_5ForCausalLM": (QKV, GATE_UP),
}
MIXTURES = ("MixtralForCausalLM", "Qwen3MoeForCausalLM")
EXPERT_BITS = (4, 8)
"""What vLLM's products of experts have, with a zero at the middle; all of a layer's experts are one product."""
TRANSFORMERS = ("SmolLM3ForCausalLM", "HunYuanDenseV1ForCausalLM", "PhiForCausalLM", "OlmoForCausalLM")
FUSED |= dict.fromkeys(TRANSFORMERS, (QKV, GATE_UP))
FUSED |= dict.fromkeys(MIXTURES, (QKV,))
BFLOAT16 = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")
"""What vLLM runs in bfloat16 whatever a config says, scales rounded to its 8 bits."""
FUSED |= dict.fromkeys(BFLOAT16, (QKV, GATE_UP))
ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


class VllmHolding(FolderHolding):
    """Packed codes of every linear, and an embedding in float16."""

    parts = tensors.PARTS

    def refusal(self) -> str | None:
        spec = self.spec
        if spec.architecture not in FUSED:
            return f"packages for vLLM are tested with {', '.join(FUSED)}, got {spec.architecture}"
        if spec.features:
            return f"vLLM's {spec.architecture} was not tested with {spec.features[0]}"
        for kind in spec.ropes:
            if kind not in ROPES:
                return f"vLLM has rotary embeddings of the kinds {', '.join(ROPES)}, got rope type {kind}"
        return self.windows_refusal()

    def unit_refusal(self, unit: UnitSpec, choice: Choice) -> str | None:
        """Why no device loads `unit` at `choice`."""
        if choice.grid not in GRIDS:
            return (
                f"compressed-tensors holds the grids {' and '.join(GRIDS)}, got {choice.grid}; train with one of them"
            )
        if choice.kept is not None:
            return f"a Hugging Face config has one width for all feed-forward blocks, {choice} prunes this one"
        if (refusal := self.groups_refusal(unit, choice)) is not None:
            return refusal
        if unit.role == EMBEDDING:  # stored in float16 whatever the choice is
            return None
        if choice.group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            return f"vLLM's kernels have group sizes {sizes}, got {choice.group_size}; use one of them"
        if choice.bits not in BITS:
            return f"compressed-tensors holds {BITS[0]} to {BITS[-1]} bits, got {choice.bits}; use one of them"
        if not choice.format.symmetric and choice.bits not in BITS_WITH_ZEROS:
            fit = f"{replace(choice, grid=MIDDLE)} or {replace(choice, bits=BITS_WITH_ZEROS[0])}"
            return f"vLLM runs {choice.bits} bits with a zero at the middle alone, got {choice}; use {fit}"
        if unit.chosen is not None and (choice.bits not in EXPERT_BITS or not choice.format.symmetric):
            bits = " and ".join(map(str, EXPERT_BITS))
            return f"vLLM's experts have {bits} bits with a zero at the middle, got {choice}; use {MIDDLE}4g64"
        for linear in unit.linears:
            if not choice.format.symmetric and linear.out_features * choice.bits % WORD_BITS:
                least = WORD_BITS // choice.bits
                return (
                    f"zeros of {choice.bits} bits are packed over {least} rows, {linear.name} has {linear.out_features}"
                )
        return None

    def split_refusal(self, gpus: int) -> str | None:
        if gpus > 1 and self.spec.architecture in TRANSFORMERS:
            return f"vLLM runs {self.spec.architecture} by transformers' code, which was not tested on several"
        return split.model_refusal(self.spec, gpus)

    def part_refusal(self, unit: UnitSpec, choice: Choice, gpus: int) -> str | None:
        return split.choice_refusal(self.spec, unit, choice, gpus)

    def tensors(self, unit: UnitSpec, choice: Choice) -> tuple[Tensor, ...]:
        return tensors.tensors(unit, choice)

    def reading(self, unit: UnitSpec, choice: Choice) -> Reading:
        if unit.role == EMBEDDING:
            return Reading(self.unit_bytes(unit, choice), FLOAT)
        if kernel(choice) == MARLIN:
            return Reading(self.unit_bytes(unit, choice), PACKED)
        usual = self.unit_bytes(unit, replace(choice, bits=4, grid=MIDDLE))
        return Reading(usual, PACKED, known=False, times=HUMMING_TIMES[choice.bits])


def ties(spec: ModelSpec) -> Groups:
    return siblings(spec, FUSED.get(spec.architecture, ())) + whole_experts(spec)


def capability(device: DeviceProfile) -> int | None:
    """A GPU's compute capability, 89 for 8.9; None where the profile does not say."""
    text = str(device.architecture or "").removeprefix("sm_")
    return int(text) if text.isascii() and text.isdigit() else None


def kernel(choice: Choice) -> str:
    """What multiplies by a choice that is not refused, on a GPU of 7.5 or newer.

    Marlin comes with vLLM. Humming is installed beside it, compiles itself when a model is loaded, and needs nvcc.
    """
    marlin = choice.bits == 4 or (choice.bits == 8 and choice.format.symmetric)
    return MARLIN if marlin else HUMMING


def device_refusal(device: DeviceProfile) -> str | None:
    """Why a GPU has none of these kernels, or None where it has them."""
    found = capability(device)
    if found is not None and found < LEAST_CAPABILITY:
        return (
            f"vLLM's kernels of quantized weights need compute capability {LEAST_CAPABILITY / 10}, "
            f"{device.name} has {found / 10}"
        )
    return None


def type_refusal(spec: ModelSpec, device: DeviceProfile) -> str | None:
    """Why vLLM does not run a model on a GPU that runs others: `_check_if_gpu_supports_dtype` of v1/worker."""
    found = capability(device)
    if spec.architecture not in BFLOAT16 or found is None or found >= BFLOAT16_CAPABILITY:
        return None
    return (
        f"vLLM runs {spec.architecture} in bfloat16, which needs compute capability {BFLOAT16_CAPABILITY / 10}, "
        f"{device.name} has {found / 10}; plan for another --device"
    )
