"""What each choice of each unit costs, for all of them in one pass over a little text.

To second order, replacing the matrices of unit u moves the model's output distribution by

    KL ~ 1/2 E_y [ (sum over u's linears of  g . dW x)^2 ]          (per token)

with x the linear's inputs, dW what the choice changes, and g the gradient of log p(y) with respect to the linear's
output, y drawn from the model: the Fisher information along dW x, exact in dW where the usual diagonal forms are not.
One forward and one backward pass of the full model give x and g of every linear; a choice costs one more product.

The quadratic form grows without bound where the true KL saturates, so each bit-width is then scaled by one measured
number: with every linear at that bit-width, the sum is the measured KL. The embedding and the head are few, and are
measured outright.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from supernet.build import Progress, Supernet, silent
from supernet.evaluate import Quality, Reference, evaluate
from supernet.space import Choice, Subnet
from supernet.spec import UnitSpec

Table = dict[str, dict[Choice, float]]


def measure_sensitivities(
    model: Any, supernet: Supernet, windows: Tensor, reference: Reference, seed: int, progress: Progress = silent
) -> tuple[Table, dict[Subnet, Quality]]:
    """KL per token for every unit and choice, and the evaluations made on the way. `model` is the full model."""
    spec, space = supernet.spec, supernet.space
    linear_units = [unit for unit in spec.units if not unit.is_table]
    table = fisher(model, supernet, linear_units, windows, seed, progress)
    uniform = {bits: space.uniform(spec, bits) for bits in space.bits(spec)}
    best = uniform[max(uniform)]
    swaps = {
        (unit.name, choice): best.replace(unit.name, choice)
        for unit in spec.units
        if unit.is_table
        for choice in space[unit.name]
    }
    subnets = list(dict.fromkeys([*uniform.values(), *swaps.values()]))
    measured = dict(zip(subnets, evaluate(supernet, subnets, reference, progress), strict=True))
    for (name, choice), subnet in swaps.items():
        # what the table adds to the best subnet; its largest choice is in every measurement and counts as nothing
        table.setdefault(name, {})[choice] = max(measured[subnet].kl - measured[best].kl, 0.0)
    for subnet in uniform.values():
        total = sum(table[unit.name][subnet[unit.name]] for unit in linear_units)
        for unit in linear_units:
            table[unit.name][subnet[unit.name]] *= measured[subnet].kl / max(total, 1e-30)
    return {unit.name: table[unit.name] for unit in spec.units}, measured


def fisher(
    model: Any, supernet: Supernet, units: list[UnitSpec], windows: Tensor, seed: int, progress: Progress = silent
) -> Table:
    """The quadratic form above for every choice of `units`, before any scaling."""
    sums: dict[tuple[str, Choice], float] = defaultdict(float)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    for number, window in enumerate(windows):
        for key, moved in _moves(model, supernet, units, window.to(model.device), generator).items():
            sums[key] += moved.double().square().sum().item()
        progress("sensitivities", number + 1, len(windows))
    tokens = windows.numel()
    return {
        unit.name: {choice: 0.5 * sums[unit.name, choice] / tokens for choice in supernet.space[unit.name]}
        for unit in units
    }


def _moves(
    model: Any, supernet: Supernet, units: list[UnitSpec], window: Tensor, generator: torch.Generator
) -> dict[tuple[str, Choice], Tensor]:
    """`g . dW x` for each token of one window, summed over a unit's linears, by (unit, choice)."""
    moves: dict[tuple[str, Choice], Tensor] = {}

    def watch(unit: UnitSpec, name: str) -> Callable[..., None]:
        def forward_hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].detach()
            output.register_hook(lambda grad: collect(unit, name, module.weight, x, grad))

        return forward_hook

    @torch.no_grad()
    def collect(unit: UnitSpec, name: str, weight: Tensor, x: Tensor, grad: Tensor) -> None:
        x, grad = x.flatten(0, -2), grad.flatten(0, -2)
        for choice in supernet.space[unit.name]:
            change = supernet.matrices[name].effective(choice) - weight
            moved = ((x @ change.T) * grad).sum(-1)
            key = (unit.name, choice)
            moves[key] = moves[key] + moved if key in moves else moved

    linears = [(unit, lin.name) for unit in units for lin in unit.linears]
    hooks = [model.get_submodule(name).register_forward_hook(watch(unit, name)) for unit, name in linears]
    embedded = model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_())
    try:
        with torch.enable_grad():
            logits = model(input_ids=window.unsqueeze(0), use_cache=False).logits.squeeze(0)
            log_probs = logits.float().log_softmax(-1)
            drawn = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)
            log_probs.gather(1, drawn).sum().backward()
    finally:
        for hook in (*hooks, embedded):
            hook.remove()
    return moves
