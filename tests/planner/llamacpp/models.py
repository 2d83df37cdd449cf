"""Tiny models whose choices are those of GGUF files: signed float16 scales on the grid `sym`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec
from tests.planner.runtime_fixtures import MIXTURES, VARIANTS, Folded, RoundedModel, round_to_nearest, save_tiny

WINDOWS_BY_SIX = ["sliding_attention" if (layer + 1) % 6 else "full_attention" for layer in range(7)]
GEMMA3 = {"num_hidden_layers": 7, "query_pre_attn_scalar": 32, "sliding_window": 20, "layer_types": WINDOWS_BY_SIX}
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    name: VARIANTS[name]
    for name in (
        "llama", "llama with biases, heads of 32", "llama without groups, linear", "llama, yarn", "llama, llama3",
        "mistral", "qwen2", "qwen2, yarn", "qwen3", "phi3", "phi3, longrope", "phi-4-mini", "gemma",
    )
} | {
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 32, "sliding_window": 20}),
    "granite": ("granite", {"attention_multiplier": 0.2}),
    "granite with biases": VARIANTS["granite with biases"],
    "smollm3": ("smollm3", {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1]}),
    "ernie": VARIANTS["ernie"],
    "hunyuan": VARIANTS["hunyuan"],
    **MIXTURES,
    "gemma3": ("gemma3", GEMMA3),
    "gemma3, linear": ("gemma3", GEMMA3 | VARIANTS["gemma3, linear"][1]),
}  # fmt: skip
READ = tuple(name for name, (family, _) in WRITTEN.items() if family not in ("granite", "smollm3", "ernie", "hunyuan"))
LOUD = {"attention": 8.0, "embedding": 4.0}  # weights with which a mistake in any part is heard in the logits


class GridModel(RoundedModel):
    """A model rounded to any grid."""

    def folded(self, linear: str, choice: Choice) -> Folded:
        if choice.grid in ("int", "k"):
            return round_to_nearest(self.weights[linear + ".weight"], choice)
        weight = self.weights[linear + ".weight"]
        grouped = weight.reshape(len(weight), -1, choice.group_size)
        middle = 2 ** (choice.bits - 1)
        largest = np.take_along_axis(grouped, np.abs(grouped).argmax(-1)[..., None], -1)[..., 0]
        scale = (-largest / middle).astype(np.float16).astype(np.float32)  # the largest is the lowest code
        scale[scale == 0] = 1
        codes = np.clip(np.round(grouped / scale[..., None]) + middle, 0, 2 * middle - 1)
        return Folded(codes.astype(np.uint8).reshape(weight.shape), scale, np.full(scale.shape, middle, np.uint8))


def made(variant: str, folder: Path, **more: Any) -> GridModel:
    family, changes = WRITTEN[variant]
    return GridModel(save_tiny(family, folder, **LOUD, **changes, **more), untied=True)


def mixed(spec: ModelSpec, *choices: str) -> Subnet:
    """A subnet that goes through the choices, linear after linear; the tables at the last."""
    cycle = [Choice.parse(choice) for choice in choices]
    return Subnet.of({u.name: cycle[-1] if u.is_table else cycle[i % len(cycle)] for i, u in enumerate(spec.units)})


EVERY = ("sym2g64", "sym3g32", "int2g32", "sym4g32", "int3g64", "int4g32", "sym5g32", "int5g64", "int7g32", "sym8g32")
K = ("k2g16", "k3g16", "k4g32", "k5g32", "k6g16")  # of rows in multiples of 256
WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512}
EXACT = ("sym4g32", "sym3g32", "sym5g32", "sym8g32")  # exact, and of types that other programs know
