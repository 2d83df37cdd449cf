"""What config.json says to mlx-lm: how each layer is quantized, and the rotary embedding where mlx-lm looks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec

_INSIDE = ("rope_theta", "partial_rotary_factor")  # of rope_parameters, which older configs had at the top


def changes(config: Mapping[str, Any], spec: ModelSpec, subnet: Subnet) -> dict[str, Any]:
    """What is set in the model's own config; None takes a key away."""
    return {**rotary(config), "quantization": quantization(spec, subnet), "quantization_config": None}


def quantization(spec: ModelSpec, subnet: Subnet) -> dict[str, Any]:
    """Bits and group size of each layer by its name; at the top those of the first linear, which mlx-lm asks for."""
    first = next(subnet[unit.name] for unit in spec.units if not unit.is_table)
    named = {lin.name: _layer(subnet[unit.name]) for unit in spec.units for lin in unit.linears}
    return {**_layer(first), "mode": "affine", **named}


def _layer(choice: Choice) -> dict[str, int]:
    return {"group_size": choice.group_size, "bits": choice.bits}


def rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 writes all of the rotary embedding into `rope_parameters`; most models of mlx-lm read `rope_theta`
    and `rope_scaling` alone, and take 10000 and none where they are missing."""
    inside = config.get("rope_parameters")
    if not isinstance(inside, Mapping):
        return {}
    found = {key: inside[key] for key in _INSIDE if key in inside}
    kind = inside.get("rope_type", "default")
    scaling = {key: value for key, value in inside.items() if key not in _INSIDE}
    return {**found, "rope_scaling": None if kind == "default" else {**scaling, "type": kind}}


def layers(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(bits, group size) of each layer that a config's `quantization` names, as `quantization` writes it; ValueError
    for whatever else it says."""
    said = config.get("quantization")
    if not isinstance(said, dict) or said.get("mode") != "affine" or "quantization_config" in config:
        raise ValueError("config.json must say in quantization, and there alone, how weights are packed")
    found = {}
    for name, layer in said.items():
        if name in ("group_size", "bits", "mode"):
            continue
        if not isinstance(layer, dict) or layer.keys() != {"group_size", "bits"}:
            raise ValueError(f"config.json must say bits and group size of {name!r:.80}")
        if type(layer["bits"]) is not int or type(layer["group_size"]) is not int:
            raise ValueError(f"config.json must say bits and group size of {name!r:.80} in whole numbers")
        found[name] = (layer["bits"], layer["group_size"])
    if (said.get("bits"), said.get("group_size")) not in found.values():
        raise ValueError("config.json must say bits and group size of its first layer")
    return found
