"""What a package for vLLM says of its packed weights: each linear's tensors have the shapes of its choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.runtimes.folder_safety import Shape, check_tensors, scale_shape
from planner.runtimes.model_folder import CONFIG
from planner.runtimes.tensor_file import Tensor
from planner.runtimes.vllm import quantization
from planner.runtimes.vllm import tensors as layout
from planner.runtimes.vllm.holding import FUSED
from planner.runtimes.vllm.quantization import expanded
from supernet.space import Choice
from supernet.spec import LinearSpec

SCALE, ROUTER = ".weight_scale", (".mlp.gate.weight", ".block_sparse_moe.gate.weight")
PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")


def shapes(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Shape]:
    """As `folder_safety.Shapes`."""
    choices = quantization.choices(config.get("quantization_config"))
    _check_fused(choices, config["architectures"][0])
    found: dict[str, Shape] = {}
    expected: list[Tensor] = []
    linears = {name.removesuffix(SCALE) for name in tensors if name.endswith(SCALE)}
    for name, choice in [(one, choice) for target, choice in choices.items() for one in expanded(target, linears)]:
        rows, groups = scale_shape(tensors, f"{name}.weight_scale")
        found[name] = (rows, groups * choice.group_size)
        expected += layout.packed(LinearSpec(name, *found[name]), choice)
    check_tensors(tensors, expected, PARTS)
    for name, tensor in tensors.items():
        if name.endswith(".weight") and len(tensor.shape) == 2 and not name.endswith(ROUTER):
            found[name.removesuffix(".weight")] = (tensor.shape[0], tensor.shape[1])
    return found


def _check_fused(choices: Mapping[str, Choice], architecture: str) -> None:
    for parts in FUSED[architecture]:
        for name in choices:
            parent, _, tail = name.rpartition(".")
            if tail in parts and {choices.get(f"{parent}.{part}") for part in parts} != {choices[name]}:
                raise ValueError(f"{CONFIG} must give {', '.join(parts)} of {parent} one choice")
