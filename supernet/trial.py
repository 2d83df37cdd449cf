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

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supernet.build import Supernet
from supernet.distill import Target, distill
from supernet.evaluate import Reference, evaluate
from supernet.gate import Gate
from supernet.progress import Progress, share_of, silent
from supernet.sensitivity import drawn, each_gradient
from supernet.space import Subnet

SUSPECTING = 4  # windows for the gradients; the others judge
HALVINGS = 2  # times that fewer units are suspected
STAGE, IMPROVER = "try adapters", "trained adapters"

Losses = tuple[float, float]  # KL per token on text of another kind, and on the own kind


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
    progress: Progress = silent, gate: Gate | None = None, subnets: Mapping[str, Subnet] | None = None,
) -> dict[str, Verdict]:  # fmt: skip
    """Drop the adapters that lose; one verdict for each of `subnets`, by its name, that has any. Without them, these
    are the uniform subnets, by their bits. `model` is the full model, `windows` are of another kind than was trained
    on, `own` are held-out windows of the same kind.

    The first `SUSPECTING` windows say which units may lose, the others judge: what a text chose looks good on it.
    """
    windows, gate = windows.to(model.device), gate or Gate()
    suspecting = min(SUSPECTING, -(-len(windows) // 3))
    progress(STAGE, 0, 1)
    texts = Reference.of(model, windows[suspecting:], first=own.first), own
    trial = _Trial(supernet, texts, dtype, progress, uniform(supernet) if subnets is None else subnets)
    trained, units = trial.adapters(), tuple(unit.name for unit in supernet.spec.units if not unit.is_table)
    having = trial.measure(trial.subnets)
    for name in trial.subnets:
        trial.drop(name, units)
    without = trial.measure(trial.subnets)
    trial.restore(trained)
    verdicts = {}
    with gate.over(IMPROVER, "bit-widths" if subnets is None else "subnets"):
        for name in trial.subnets:
            gate.settle(IMPROVER, 1.0, _worst(having[name], without[name]), partial(trial.drop, name, units))
            dropped = () if name in trial.adapted else units
            kept = without[name] if dropped else having[name]
            verdicts[name] = Verdict(without[name][0], having[name][0], kept[0], dropped)
    losing = {}
    for name in trial.adapted:
        costs = removal_costs(model, supernet, trial.subnets[name], windows[:suspecting], seed, dtype)
        losing[name] = sorted((unit for unit, cost in costs.items() if cost < 0), key=costs.__getitem__)
    for _ in range(HALVINGS):
        losing = {name: some for name, some in losing.items() if some}
        trained = trial.adapters()
        for name, suspects in losing.items():
            trial.drop(name, suspects)
        left = trial.measure(losing)
        trial.restore(trained)
        for name in list(losing):
            if left[name][0] < having[name][0] and left[name][1] <= having[name][1]:
                trial.drop(name, losing[name])
                verdicts[name] = replace(verdicts[name], kept=left[name][0], dropped=tuple(losing.pop(name)))
            else:
                losing[name] = losing[name][: len(losing[name]) // 2]
    progress(STAGE, 1, 1)
    return verdicts


def _worst(after: Losses, before: Losses) -> float:
    """The larger of the shares that are left of two losses; what is not a number is the largest."""
    shares = [then / max(now, 1e-30) for then, now in zip(after, before, strict=True)]
    return math.inf if any(map(math.isnan, shares)) else max(shares)


class _Trial:
    """Those of `subnets` that have adapters, measured side by side on two kinds of text: what the full model says
    there is made once for all of them."""

    def __init__(
        self, supernet: Supernet, texts: tuple[Reference, Reference], dtype: torch.dtype, progress: Progress,
        subnets: Mapping[str, Subnet],
    ) -> None:  # fmt: skip
        self.supernet, self.texts, self.dtype, self.progress = supernet, texts, dtype, progress
        self.subnets = {name: subnet for name, subnet in subnets.items() if supernet.adapters(subnet)}
        self.measured = 0

    @property
    def adapted(self) -> list[str]:
        """The names of those that have an adapter left."""
        return [name for name, subnet in self.subnets.items() if self.supernet.adapters(subnet)]

    def measure(self, names: Collection[str]) -> dict[str, Losses]:
        """KL per token on text of another kind and on the own one."""
        found = []
        for text in self.texts:
            report = share_of(self.progress, STAGE, self.measured, 2 * (2 + HALVINGS))
            subnets = [self.subnets[name] for name in names]
            found.append([q.kl for q in evaluate(self.supernet, subnets, text, report, self.dtype)] if subnets else [])
            self.measured += 1
        return dict(zip(names, zip(*found, strict=True), strict=True))

    def adapters(self) -> dict[str, nn.ModuleDict]:
        return {name: matrix.adapters for name, matrix in self.supernet.matrices.items()}

    def restore(self, adapters: Mapping[str, nn.ModuleDict]) -> None:
        for name, matrix in self.supernet.matrices.items():
            matrix.adapters = adapters[name]

    def drop(self, name: str, units: Collection[str]) -> None:
        for unit in self.supernet.spec.units:
            if unit.name in units:
                for linear in unit.linears:
                    self.supernet.matrices[linear.name].drop([self.subnets[name][unit.name]])


def uniform(supernet: Supernet) -> dict[str, Subnet]:
    """The uniform subnets that have adapters, by their bits."""
    return {str(bits): supernet.space.uniform(supernet.spec, bits) for bits in supernet.adapted_bits}


def removal_costs(
    model: Any, supernet: Supernet, subnet: Subnet, windows: Tensor, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """What removing each unit's adapter from `subnet` adds to its KL, in nats per token, the others staying."""
    pairs = ((unit, linear.name) for unit in supernet.spec.units for linear in unit.linears)
    adapted = {name: unit for unit, name in pairs if supernet.matrices[name].adapter(subnet[unit.name])}
    supernet.set_dtype(dtype)
    supernet.activate(subnet)
    costs: dict[str, float] = defaultdict(float)
    tokens = 0
    # of the windows at hand: a unit's linears move together, experts each by itself
    moves: dict[tuple[str, str], Tensor | int] = defaultdict(int)

    def collect(name: str, module: Any, x: Tensor, grad: Tensor) -> None:
        unit = adapted[name]
        choice = subnet[unit.name]
        change = module.stored(choice).dequantize() - module.effective(choice)
        moved = ((x @ change.to(dtype).T) * grad).sum(-1, dtype=torch.float32)
        moves[unit.name, "" if unit.chosen is None else name] += moved

    def close(cost: Callable[[Tensor], Tensor]) -> None:
        for (unit, _), moved in moves.items():
            costs[unit] += cost(torch.as_tensor(moved)).sum().item()
        moves.clear()

    def first(moved: Tensor) -> Tensor:
        return moved * tokens / windows.numel()  # the gradient is that of a mean over the tokens at hand

    def second(moved: Tensor) -> Tensor:
        return 0.5 * moved.square() / windows.numel()

    def backward(batch: Tensor) -> None:
        nonlocal tokens
        tokens = batch.numel()
        with torch.enable_grad():
            distill(Target.of(model, batch), supernet.model, batch)

    for goes_back, cost in ((backward, first), (drawn(supernet.model, seed), second)):
        each_gradient(supernet.model, list(adapted), windows, goes_back, collect, close=partial(close, cost))
    supernet.model.zero_grad(set_to_none=True)
    return dict(costs)
