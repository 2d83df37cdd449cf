"""What an mlx-lm folder holds: affine groups of MLX, and the models that mlx-lm computes as transformers does.

Read from mlx 0.32 and mlx-lm 0.32, and each architecture compared with transformers on the same weights.
"""

from __future__ import annotations

from planner.runtimes.caches import FLOAT16, CacheType
from planner.runtimes.folder_runtime import FolderHolding
from planner.runtimes.mlx import tensors
from planner.runtimes.tensor_file import Tensor
from profiles.device import DeviceProfile
from profiles.folder_shares import PACKED, Reading
from supernet.formats import FORMATS
from supernet.space import Choice
from supernet.spec import UnitSpec

VENDOR = "Apple"
LEAST_KNOWN = 4  # bits of which speeds were published, but for one of 3
GRIDS = tuple(name for name, format in FORMATS.items() if format.sides.keys() <= {"scale", "zero"})
BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
CACHES = (FLOAT16, CacheType("q8", 64, 68), CacheType("q4", 64, 36))  # --kv-bits, in groups of 64
SILU = ("silu", "swish")
# The activations that mlx-lm's model of an architecture has, whatever the config says.
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "LlamaForCausalLM": SILU,
    "MistralForCausalLM": SILU,
    "Qwen2ForCausalLM": SILU,
    "Qwen3ForCausalLM": SILU,
    "Phi3ForCausalLM": SILU,
    "GraniteForCausalLM": SILU,
    "NemotronForCausalLM": ("relu2",),
    "PhiForCausalLM": ("gelu_new",),
    "SmolLM3ForCausalLM": SILU,
    "HunYuanDenseV1ForCausalLM": SILU,
    "Ernie4_5ForCausalLM": SILU,
}
LLAMA_ROPES = ("default", "linear", "dynamic", "yarn", "llama3")
ROPES: dict[str, tuple[str, ...]] = {
    "LlamaForCausalLM": LLAMA_ROPES,
    "MistralForCausalLM": LLAMA_ROPES,
    "Qwen2ForCausalLM": LLAMA_ROPES,
    "Qwen3ForCausalLM": LLAMA_ROPES,
    "HunYuanDenseV1ForCausalLM": ("default", "ntk_alpha"),
}
"""Kinds of rotary embedding that mlx-lm computes as transformers does; for all others the default one. Of longrope it
has the factors for long texts and no others."""
WINDOWS = ("SmolLM3ForCausalLM",)  # whose layers see a window where the config says so; others see everything


class MlxHolding(FolderHolding):
    """Affine groups of weights."""

    parts = tensors.PARTS

    def refusal(self) -> str | None:
        spec = self.spec
        if spec.architecture not in ACTIVATIONS:
            return f"packages for MLX are tested with {', '.join(ACTIVATIONS)}, got {spec.architecture}"
        if spec.features:
            return f"mlx-lm's model of {spec.architecture} has no {spec.features[0]}"
        kinds = ROPES.get(spec.architecture, ("default",))
        for kind in spec.ropes:
            if kind not in kinds:
                have = ", ".join(kinds)
                return f"mlx-lm computes for {spec.architecture} rotary embeddings of {have}, got rope type {kind}"
        if spec.activation not in ACTIVATIONS[spec.architecture]:
            known = ", ".join(ACTIVATIONS[spec.architecture])
            return f"mlx-lm's model of {spec.architecture} has the activation {known}, got {spec.activation}"
        for window in spec.windows:
            if window is not None and window < spec.max_context and spec.architecture not in WINDOWS:
                return (
                    f"mlx-lm's {spec.architecture} lets every token see all before it, got a sliding window of {window}"
                )
        return None

    def unit_refusal(self, unit: UnitSpec, choice: Choice) -> str | None:
        if choice.grid not in GRIDS:
            return f"MLX holds the grids {' and '.join(GRIDS)}, got {choice.grid}; train with one of them"
        if choice.kept is not None:
            return f"mlx-lm's config has one width for all feed-forward blocks, {choice} prunes this one"
        if choice.bits not in BITS:
            return f"MLX holds {', '.join(map(str, BITS))} bits, got {choice.bits}; use one of them"
        if choice.group_size not in GROUP_SIZES:
            return f"MLX has group sizes {', '.join(map(str, GROUP_SIZES))}, got {choice.group_size}; use one of them"
        return self.groups_refusal(unit, choice)

    def tensors(self, unit: UnitSpec, choice: Choice) -> tuple[Tensor, ...]:
        return tensors.tensors(unit, choice)

    def reading(self, unit: UnitSpec, choice: Choice) -> Reading:
        return Reading(self.unit_bytes(unit, choice), PACKED, known=choice.bits >= LEAST_KNOWN)


def device_refusal(device: DeviceProfile) -> str | None:
    return None if device.vendor == VENDOR else f"MLX runs on Apple silicon, {device.name} is by {device.vendor}"
