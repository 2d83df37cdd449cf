"""Experts as linears: what transformers keeps as stacks of matrices, one module for each matrix of each expert.

transformers computes a mixture from two parameters, `(experts, 2 * channels, hidden_size)` and `(experts, hidden_size,
channels)`. Whatever quantizes, calibrates or trains here knows linears alone. So a mixture's stacks become linears
where a model is made; their weights are views of the stacks, and no byte is copied. The router stays as it is.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

STACKED = ("MixtralForCausalLM", "Qwen3MoeForCausalLM")
"""The models whose experts are read: gate and up in one stack, down in another, no biases."""

M = TypeVar("M")


class Expert(nn.Module):
    """A gated feed-forward block from rows of the stacks."""

    def __init__(self, gate_up: Tensor, down: Tensor, act_fn: Any) -> None:
        super().__init__()
        gate, up = gate_up.chunk(2)
        self.gate_proj, self.up_proj, self.down_proj = linear_of(gate), linear_of(up), linear_of(down)
        self.act_fn = act_fn

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.ModuleList):
    """Takes the place of a stack, and is called as it is."""

    def __init__(self, stack: Any) -> None:
        gate_up, down = stack.gate_up_proj.detach(), stack.down_proj.detach()
        super().__init__(Expert(*one, stack.act_fn) for one in zip(gate_up, down, strict=True))

    def forward(self, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """`(tokens, hidden_size)`; `chosen` and `shares` `(tokens, experts of each)`.

        Experts that no token chose are left out, but for a pass with gradients: there all of them take part, so that
        processes that train together find gradients of the same parameters.
        """
        total = torch.zeros_like(hidden)
        for number, expert in enumerate(self):
            tokens, place = torch.where(chosen == number)
            if len(tokens) or torch.is_grad_enabled():
                made = expert(hidden[tokens]) * shares[tokens, place, None]
                total = total.index_add(0, tokens, made.to(total.dtype))
        return total


def routed(block: nn.Module, found: dict[nn.Module, tuple[Tensor, Tensor]]) -> list[Any]:
    """Hooks on a decoder block by which `found` is told of each module of an expert, before it computes: its tokens and
    their shares, which its output is multiplied by."""

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        _, chosen, shares = args
        for number, expert in enumerate(module.children()):
            tokens, place = torch.where(chosen == number)
            found.update(dict.fromkeys(expert.modules(), (tokens, shares[tokens, place])))

    return [module.register_forward_pre_hook(note) for module in block.modules() if isinstance(module, Experts)]


def unstacked(model: M) -> M:
    """The model itself, its experts linears; one without experts, or with others, is as it was."""
    if type(model).__name__ in STACKED:
        found = [name for name, module in model.named_modules() if _is_stack(module)]  # type: ignore[attr-defined]
        for name in found:
            model.set_submodule(name, Experts(model.get_submodule(name)))  # type: ignore[attr-defined]
    return model


def _is_stack(module: nn.Module) -> bool:
    return all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in ("gate_up_proj", "down_proj"))


def linear_of(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A frozen linear that has this weight and this bias, which are not copied."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made
