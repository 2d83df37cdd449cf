"""A subnet with low-rank side paths, as a PEFT model: for what a runtime with integer codes cannot fold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from records.errors import InputError
from supernet.build import Supernet, extract
from supernet.space import Choice, Subnet


@torch.no_grad()
def to_peft(supernet: Supernet, subnet: Subnet) -> Any:
    """A `PeftModel` over the subnet's dequantized codes; its LoRA are the subnet's own, a mixture of experts evaluated.

    InputError where the subnet has no side path, experts, or pruned blocks: its LoRA would write into what is gone.
    """
    from peft import LoraConfig, get_peft_model

    if supernet.spec.experts:
        raise InputError("a PEFT model has no LoRA for experts, which transformers keeps in stacks; use a dense model")
    if any(choice.kept is not None for _, choice in subnet):
        raise InputError("a PEFT model keeps every channel, this subnet is pruned; use one without kept channels")
    supernet.activate(subnet)
    sides: dict[str, tuple[str, tuple[Tensor, Tensor]]] = {}
    for key, adapter in supernet.adapters(subnet).items():
        name, choice = key.split("|")
        side = adapter.low_rank()
        if side is not None:
            sides[name] = choice, side
    if not sides:
        raise InputError("only a subnet with LoRA becomes a PEFT model, this one has none; use supernet.build.extract")
    model = extract(supernet, subnet)
    for name, (choice, _) in sides.items():
        stored = supernet.matrices[name].stored(Choice.parse(choice))
        model.get_submodule(name).weight.copy_(stored.dequantize())
    rank = len(next(iter(sides.values()))[1][1])
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(sides), task_type="CAUSAL_LM")
    wrapped: Any = get_peft_model(model, config)
    for name, (_, (up, down)) in sides.items():
        layer: Any = wrapped.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.copy_(down)
        layer.lora_B["default"].weight.copy_(up)
    return wrapped.eval()
