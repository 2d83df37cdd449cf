"""What plain rounding would lose: the least that anything better has to beat.

Each linear is rounded to nearest where it is, for as long as its block computes: no second model is held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from supernet.absent import own_dtype, present
from supernet.awq import MAKES, READS
from supernet.blocks import decoder_layers, first_inputs, layer_arguments, output_of, skipped
from supernet.evaluate import Reference
from supernet.grids import GRIDS
from supernet.model import head_tokens, hidden_states, logits_of
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
        progress("plain rounding", number, len(layers))
        units = [unit for unit in spec.units if unit.layer == number]
        for b, subnet in subnets.items():
            with rounded(model, {lin.name: subnet[unit.name] for unit in units for lin in unit.linears}, scales):
                states[b] = output_of(layer, states[b], calls[number])
    with rounded(model, tables):
        return dict(zip(bits, _losses(model, [states[b] for b in bits], reference, progress), strict=True))


@contextmanager
def rounded(model: Any, choices: Mapping[str, Choice], scales: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Within, these linears' weights are rounded to nearest; afterwards they are the same tensors as before."""
    weights = {name: model.get_submodule(name).weight for name in choices}
    with present(*weights.values()):
        exact = {name: weight.data for name, weight in weights.items()}
        try:
            for name, choice in choices.items():
                factors = (_scale(scales, name, part) for part in (READS, MAKES))
                own = exact[name].to(own_dtype(weights[name]))
                weights[name].data = _rounded(own, choice, *factors).to(exact[name].dtype)
            yield
        finally:
            for name, weight in weights.items():
                weight.data = exact[name]


def _scale(scales: Mapping[str, Tensor] | None, name: str, part: str) -> Tensor | None:
    return None if scales is None else scales.get(f"{name}|{part}")


def _rounded(weight: Tensor, choice: Choice, columns: Tensor | None, rows: Tensor | None) -> Tensor:
    """Rounded where its columns are multiplied and its rows divided, and scaled back."""
    if columns is None and rows is None:
        return GRIDS[choice.grid].rounded(weight, choice)
    factor = torch.ones(1, device=weight.device) if columns is None else columns.to(weight.device)
    if rows is not None:
        factor = factor / rows.to(weight.device).unsqueeze(1)
    return (GRIDS[choice.grid].rounded(weight.float() * factor, choice) / factor).to(weight.dtype)


def _losses(model: Any, states: Sequence[Tensor], reference: Reference, progress: Progress) -> list[float]:
    """KL per token where the last block makes each of `states` `(n, tokens, hidden_size)`. All of them go through the
    head together: it is large."""
    hidden = []
    for state in states:
        with skipped(decoder_layers(model), state):
            hidden.append(hidden_states(model, reference.windows))
    count, end = len(reference.windows), reference.windows.shape[1] - 1  # `evaluate` counts tokens with a successor
    totals = torch.zeros(len(states), dtype=torch.float64, device=reference.windows.device)
    at_once = head_tokens(reference.windows.device)
    for number in range(count):
        progress("plain rounding, at the head", number, count)
        for start in range(reference.first, end, at_once):
            stretch = slice(start, min(start + at_once, end))
            full = reference.log_probs(number, stretch)
            logits = logits_of(model, torch.stack([one[number, stretch] for one in hidden]))
            for index, ours in enumerate(logits):
                totals[index] += nn.functional.kl_div(
                    ours.float().log_softmax(-1), full, reduction="sum", log_target=True
                )
    return (totals / (count * (end - reference.first))).tolist()
