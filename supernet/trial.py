"""Adapters on trial, on text of another kind than they were trained on: what loses there is dropped, by bits and unit.

Text of the kind that was trained on would praise what has merely learned that kind. All adapters of a bit-width are
judged by measuring its uniform subnet with and without them. One measurement for each unit would take too long, so what
removing a unit's adapter costs is read off gradients, to second order: it changes the weight by dW and the output by
dW x, which costs E[g_KL . dW x] + 1/2 E[(g . dW x)^2], with g_KL the gradient of the KL divergence and g that of
log p(y), y drawn from the subnet (the Fisher form of `supernet.sensitivity`). That tells which way a unit goes rather
than how far, so units that are better off without go, the surest first, and only as many as measurements confirm: on
other windows of that text, and with nothing lost on held-out windows of the text that was trained on. What one kind of
text alone would drop, another may miss (docs/log.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supernet.build import Supernet
from supernet.evaluate import Reference, evaluate
from supernet.grids import GRIDS
from supernet.progress import Progress, silent
from supernet.sensitivity import drawn, each_gradient
from supernet.space import Subnet
from supernet.train import Target, distill

SUSPECTING = 4  # windows for the gradients; the others judge


@dataclass(frozen=True)
class Verdict:
    """KL per token of a bit-width's uniform subnet: of codes alone, with all adapters, and with those that are kept."""

    without: float
    having: float
    kept: float
    dropped: tuple[str, ...]
    """The units that lost their adapter at this bit-width."""

    def to_json(self) -> dict[str, Any]:
        return {"without": self.without, "with": self.having, "kept": self.kept, "dropped": list(self.dropped)}


def try_adapters(
    model: Any, supernet: Supernet, windows: Tensor, own: Reference, seed: int, dtype: torch.dtype = torch.float32,
    progress: Progress = silent,
) -> dict[int, Verdict]:  # fmt: skip
    """Drop the adapters that lose; one verdict for each bit-width that has any. `model` is the full model,
    `windows` are of another kind than was trained on, `own` are held-out windows of the same kind.

    The first `SUSPECTING` windows say which units may lose, the others judge: what a text chose looks good on it.
    """
    windows = windows.to(model.device)
    other = Reference.of(model, windows[SUSPECTING:])
    widths, verdicts = supernet.adapted_bits, {}
    for number, bits in enumerate(widths):
        subnet = supernet.space.uniform(supernet.spec, bits)
        verdicts[bits] = _judge(model, supernet, subnet, windows[:SUSPECTING], other, own, seed, dtype)
        progress("try adapters", number + 1, len(widths))
    return verdicts


def _judge(
    model: Any, supernet: Supernet, subnet: Subnet, suspecting: Tensor, other: Reference, own: Reference, seed: int,
    dtype: torch.dtype,
) -> Verdict:  # fmt: skip
    def measure(text: Reference) -> float:
        return evaluate(supernet, [subnet], text, dtype=dtype)[0].kl

    trained = {name: matrix.adapters for name, matrix in supernet.matrices.items()}
    units = tuple(unit.name for unit in supernet.spec.units if not unit.is_table)
    having = measure(other)
    _drop(supernet, subnet, units)
    without = measure(other)
    if having >= without:
        return Verdict(without, having, without, units)
    _restore(supernet, trained)
    costs = removal_costs(model, supernet, subnet, suspecting, seed, dtype)
    losing = sorted((unit for unit, cost in costs.items() if cost < 0), key=costs.__getitem__)
    least = measure(own) if losing else 0.0
    while losing:
        _drop(supernet, subnet, losing)
        left = measure(other)
        if left < having and measure(own) <= least:
            return Verdict(without, having, left, tuple(losing))
        _restore(supernet, trained)
        losing = losing[: len(losing) // 2]
    return Verdict(without, having, having, ())


def removal_costs(
    model: Any, supernet: Supernet, subnet: Subnet, windows: Tensor, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """What removing each unit's adapter from `subnet` adds to its KL, in nats per token, the others staying."""
    pairs = ((unit, linear.name) for unit in supernet.spec.units for linear in unit.linears)
    adapted = {name: unit.name for unit, name in pairs if supernet.matrices[name].adapter(subnet[unit.name])}
    supernet.set_dtype(dtype)
    supernet.activate(subnet)
    costs: dict[str, float] = defaultdict(float)
    moves: dict[str, Tensor | int] = defaultdict(int)  # of the window at hand: a unit's linears move together

    def collect(name: str, module: Any, x: Tensor, grad: Tensor) -> None:
        choice = subnet[adapted[name]]
        change = GRIDS[choice.grid].dequantize(module.stored(choice), torch.float32) - module.effective(choice)
        moves[adapted[name]] += ((x @ change.to(dtype).T) * grad).sum(-1, dtype=torch.float32)

    def close(cost: Callable[[Tensor], Tensor]) -> None:
        for unit, moved in moves.items():
            costs[unit] += cost(torch.as_tensor(moved)).sum().item()
        moves.clear()

    def first(moved: Tensor) -> Tensor:
        return moved / len(windows)  # the gradient is that of a mean over the window's tokens

    def second(moved: Tensor) -> Tensor:
        return 0.5 * moved.square() / windows.numel()

    def backward(window: Tensor) -> None:
        with torch.enable_grad():
            distill(Target.of(model, window.unsqueeze(0)), supernet.model, window.unsqueeze(0))

    for goes_back, cost in ((backward, first), (drawn(supernet.model, seed), second)):
        each_gradient(supernet.model, list(adapted), windows, goes_back, collect, close=partial(close, cost))
    supernet.model.zero_grad(set_to_none=True)
    return dict(costs)


def _drop(supernet: Supernet, subnet: Subnet, units: Collection[str]) -> None:
    for unit in supernet.spec.units:
        if unit.name in units:
            for linear in unit.linears:
                supernet.matrices[linear.name].drop([subnet[unit.name]])


def _restore(supernet: Supernet, adapters: Mapping[str, nn.ModuleDict]) -> None:
    for name, matrix in supernet.matrices.items():
        matrix.adapters = adapters[name]
