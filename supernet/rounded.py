"""What plain rounding would lose: the least that anything better has to beat.

Each linear is rounded to nearest where it is, for as long as its block computes: no second model is held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from supernet.awq import MAKES, READS
from supernet.blocks import decoder_layers, first_inputs, layer_arguments, output_of, skipped
from supernet.evaluate import Reference
from supernet.grids import IntegerGrid
from supernet.model import HEAD_TOKENS, hidden_states, logits_of
from supernet.progress import Progress, silent
from supernet.space import Choice, SearchSpace
from supernet.spec import ModelSpec


@torch.no_grad()
def rounding_losses(
    model: Any, spec: ModelSpec, space: SearchSpace, reference: Reference, bits: Sequence[int],
    progress: Progress = silent, scales: Mapping[str, Tensor] | None = None,
) -> dict[int, float]:  # fmt: skip
    """KL per token on the reference's windows, for the full `model` with every linear rounded to nearest at each of
    these `bits`, its tables at their largest choice. With `scales` (`supernet.awq`) as if it had been rescaled."""
    reference = reference.to(model.device)
    subnets = {b: space.uniform(spec, b) for b in bits}
    tables = {lin.name: space.whole[u.name][-1] for u in spec.units if u.is_table for lin in u.linears}
    layers, calls = decoder_layers(model), layer_arguments(model, reference.windows[:1])
    with rounded(model, tables):
        first = first_inputs(model, reference.windows)
    states = dict.fromkeys(bits, first)
    for number, layer in enumerate(layers):
        units = [unit for unit in spec.units if unit.layer == number]
        for b, subnet in subnets.items():
            with rounded(model, {lin.name: subnet[unit.name] for unit in units for lin in unit.linears}, scales):
                states[b] = output_of(layer, states[b], calls[number])
        progress("plain rounding", number + 1, len(layers))
    with rounded(model, tables):
        return {b: _loss(model, state, reference) for b, state in states.items()}


@contextmanager
def rounded(model: Any, choices: Mapping[str, Choice], scales: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Within, these linears' weights are rounded to nearest; afterwards they are the same tensors as before."""
    weights = {name: model.get_submodule(name).weight for name in choices}
    exact = {name: weight.data for name, weight in weights.items()}
    try:
        for name, choice in choices.items():
            weights[name].data = _rounded(exact[name], choice, *(_scale(scales, name, part) for part in (READS, MAKES)))
        yield
    finally:
        for name, weight in weights.items():
            weight.data = exact[name]


def _scale(scales: Mapping[str, Tensor] | None, name: str, part: str) -> Tensor | None:
    return None if scales is None else scales.get(f"{name}|{part}")


def _rounded(weight: Tensor, choice: Choice, columns: Tensor | None, rows: Tensor | None) -> Tensor:
    """Rounded where its columns are multiplied and its rows divided, and scaled back."""
    if columns is None and rows is None:
        return IntegerGrid().rounded(weight, choice)
    factor = torch.ones(1, device=weight.device) if columns is None else columns.to(weight.device)
    if rows is not None:
        factor = factor / rows.to(weight.device).unsqueeze(1)
    return (IntegerGrid().rounded(weight.float() * factor, choice) / factor).to(weight.dtype)


def _loss(model: Any, state: Tensor, reference: Reference) -> float:
    """KL per token where the last block makes `state` `(n, tokens, hidden_size)`."""
    with skipped(model, state):
        hidden = hidden_states(model, reference.windows)
    total = 0.0
    for number, window in enumerate(hidden):
        for start in range(reference.first, len(window), HEAD_TOKENS):
            stretch = slice(start, min(start + HEAD_TOKENS, len(window)))
            full = reference.log_probs(number, stretch)
            ours = logits_of(model, window[stretch]).float().log_softmax(-1)
            total += torch.nn.functional.kl_div(ours, full, reduction="sum", log_target=True).item()
    return total / reference.windows[:, reference.first :].numel()
