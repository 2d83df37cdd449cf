"""What config.json says of the packed weights: `quantization_config`, as compressed-tensors reads it.

One group for each choice, its linears named one by one: a pattern would have to know what else a model is made of.
Experts alone are named by a pattern, all of a layer together: vLLM asks for `gate_proj` of the first whatever the file
calls it, and transformers looks for the group that names them so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from planner.runtimes.vllm.holding import GRIDS
from supernet.facts import stored_name
from supernet.space import Choice, Subnet
from supernet.spec import EMBEDDING, ModelSpec

FORMAT, METHOD = "pack-quantized", "compressed-tensors"
PATTERN, NUMBER = "re:", r"\d+\."
LEAST_VERSION = "0.20.0"
"""compressed-tensors packs 3, 5, 6 and 7 bits without gaps from here on, which is what is written. Older ones put 10
codes of 3 bits into a word and find the shapes wrong."""


def quantization_config(spec: ModelSpec, subnet: Subnet) -> dict[str, Any]:
    targets: dict[Choice, list[str]] = {}
    for unit in spec.units:
        if unit.role != EMBEDDING:
            names = [linear.name for linear in unit.linears]
            found = [experts_of(stored_name(names[0], spec.architecture))] if unit.chosen is not None else names
            targets.setdefault(subnet[unit.name], []).extend(found)
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "version": LEAST_VERSION,
        "config_groups": {str(choice): group(choice, names) for choice, names in sorted(targets.items())},
        "ignore": ["lm_head"] if spec.tied else [],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def experts_of(linear: str) -> str:
    """The pattern of all experts that lie where this linear does."""
    return PATTERN + re.escape(linear.partition(".experts.")[0] + ".experts.") + NUMBER


def expanded(target: str, linears: Iterable[str]) -> list[str]:
    """The linears that a target names, of those that there are; ValueError for a pattern that no exporter writes."""
    if not target.startswith(PATTERN):
        return [target]
    found = [name for name in linears if ".experts." in name and experts_of(name) == target]
    if not found:
        raise ValueError(f"config.json may not name linears by {target!r:.80}")
    return found


def group(choice: Choice, targets: list[str]) -> dict[str, Any]:
    return {
        "targets": targets,
        "weights": {
            "num_bits": choice.bits,
            "type": "int",
            "symmetric": choice.format.symmetric,
            "strategy": "group",
            "group_size": choice.group_size,
            "dynamic": False,
            "actorder": None,
            "block_structure": None,
        },
        "input_activations": None,
        "output_activations": None,
        "format": FORMAT,
    }


def choices(config: Any) -> dict[str, Choice]:
    """The choice of each linear that a `quantization_config` names, as `quantization_config` writes it; ValueError for
    whatever else it says."""
    found: dict[str, Choice] = {}
    if not isinstance(config, dict) or not isinstance(config.get("config_groups"), dict):
        raise ValueError("config.json must say in quantization_config.config_groups how weights are packed")
    for name, said in config["config_groups"].items():
        choice = Choice.parse(name)
        names = said.get("targets") if isinstance(said, dict) else None
        if not isinstance(names, list) or not all(isinstance(target, str) for target in names):
            raise ValueError(f"config.json must name the targets of {name}")
        if choice.grid not in GRIDS or choice.kept is not None or said != group(choice, names):
            raise ValueError(f"config.json must say of {name} what an exporter says of it")
        if found.keys() & set(names) or len(set(names)) != len(names):
            raise ValueError("config.json must name each linear once")
        found |= dict.fromkeys(names, choice)
    rest = {key: value for key, value in config.items() if key not in ("config_groups", "ignore")}
    fixed = {"quant_method": METHOD, "format": FORMAT, "quantization_status": "compressed", "version": LEAST_VERSION}
    if rest != {**fixed, "kv_cache_scheme": None, "global_compression_ratio": None}:
        raise ValueError("config.json says more of its quantization than an exporter does")
    if config.get("ignore") not in ([], ["lm_head"]):
        raise ValueError("config.json must leave out of its quantization the head alone, or nothing")
    return found
