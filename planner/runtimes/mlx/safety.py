"""What a package for MLX says of its packed weights: each layer's tensors have the shapes of its bits and groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.runtimes.folder_safety import Shape, check_tensors, scale_shape
from planner.runtimes.mlx import description
from planner.runtimes.mlx import tensors as layout
from planner.runtimes.mlx.holding import BITS, GROUP_SIZES
from planner.runtimes.model_folder import CONFIG
from planner.runtimes.tensor_file import Tensor
from supernet.space import Choice
from supernet.spec import LinearSpec

PARTS = ("scales", "biases")


def shapes(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Shape]:
    """As `folder_safety.Shapes`."""
    found: dict[str, Shape] = {}
    expected: list[Tensor] = []
    for name, (bits, group_size) in description.layers(config).items():
        if bits not in BITS or group_size not in GROUP_SIZES:
            raise ValueError(f"{CONFIG} may not pack {name!r:.80} in {bits} bits and groups of {group_size}")
        rows, groups = scale_shape(tensors, f"{name}.scales")
        found[name] = (rows, groups * group_size)
        expected += layout.packed(LinearSpec(name, *found[name]), Choice(bits, group_size))
    check_tensors(tensors, expected, PARTS)
    return found
