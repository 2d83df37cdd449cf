"""A subnet whose adapters are LoRA, as a PEFT model: for what a runtime with integer codes cannot fold."""

from __future__ import annotations

from typing import Any

import torch

from supernet.adapters import LoRA
from supernet.build import Supernet, extract
from supernet.grids import GRIDS
from supernet.space import Choice, Subnet


@torch.no_grad()
def to_peft(supernet: Supernet, subnet: Subnet) -> Any:
    """A `PeftModel` over the subnet's dequantized codes; its LoRA are the subnet's own.

    ValueError where the subnet has no LoRA.
    """
    from peft import LoraConfig, get_peft_model

    loras: dict[str, tuple[str, LoRA]] = {}
    for key, adapter in supernet.adapters(subnet).items():
        name, choice = key.split("|")
        if isinstance(adapter, LoRA):
            loras[name] = choice, adapter
    if not loras:
        raise ValueError("only a subnet with LoRA becomes a PEFT model, this one has none; use supernet.build.extract")
    model = extract(supernet, subnet)
    for name, (choice, _) in loras.items():
        stored = supernet.matrices[name].stored(Choice.parse(choice))
        model.get_submodule(name).weight.copy_(GRIDS[stored.choice.grid].dequantize(stored, torch.float32))
    _, first = next(iter(loras.values()))
    rank = len(first.down)
    config = LoraConfig(
        r=rank, lora_alpha=round(first.scaling * rank), target_modules=list(loras), task_type="CAUSAL_LM"
    )
    wrapped: Any = get_peft_model(model, config)
    for name, (_, lora) in loras.items():
        layer: Any = wrapped.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.copy_(lora.down)
        layer.lora_B["default"].weight.copy_(lora.up)
    return wrapped.eval()
