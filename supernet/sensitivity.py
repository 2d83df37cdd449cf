"""What each choice of each unit costs, for all of them in one pass over a little text.

To second order, replacing the matrices of unit u moves the model's output distribution by

    KL ~ 1/2 E_y [ (sum over u's linears of  g . dW x)^2 ]          (per token)

with x the linear's inputs, dW what the choice changes, and g the gradient of log p(y) with respect to the linear's
output, y drawn from the model: the Fisher information along dW x, exact in dW where the usual diagonal forms are not.
One forward and one backward pass of the full model give x and g of every linear; a choice costs one more product.

The quadratic form grows without bound where the true KL saturates, so each bit-width is then scaled by one measured
number: with every linear at that bit-width, the sum is the measured KL. The embedding and the head are few, and are
measured outright.

A feed-forward block that keeps some of its channels pays twice: for the codes of what it keeps, scaled as above, and
for what is gone, at the linear that reads the channels, where taking them away is a linear change. The second part is
scaled by a measurement too: that number of channels in the quarter of the blocks that lose least by it, as in a plan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from supernet.absent import streams
from supernet.backward import backward
from supernet.blocks import decoder_layers
from supernet.build import Supernet
from supernet.evaluate import Quality, Reference, evaluate
from supernet.labels import label_gradient
from supernet.mapped import give_back_pages
from supernet.model import hidden_states, removed_after
from supernet.progress import Progress, silent
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import UnitSpec

TOGETHER = 2  # windows that a pass with gradients takes side by side: weights are made once for all of them
PRUNED_AT_ONCE = 0.25  # share of the blocks that lose channels in the measurement of what that costs
LEAST_SHARE = 0.01  # of a measured KL that the removal of channels is believed to cost at least

Table = dict[str, dict[Choice, float]]
Removals = dict[str, dict[int, float]]  # unit that reads channels -> how many are left -> what that loses
Collect = Callable[[str, Any, Tensor, Tensor], None]


def measure_sensitivities(
    model: Any, supernet: Supernet, windows: Tensor, reference: Reference, seed: int, progress: Progress = silent
) -> tuple[Table, dict[Subnet, Quality]]:
    """KL per token for every unit and choice, and the evaluations made on the way. `model` is the full model."""
    spec, space = supernet.spec, supernet.space
    linear_units = [unit for unit in spec.units if not unit.is_table]
    table, removals = fisher_parts(model, supernet, linear_units, windows, seed, progress)
    uniform = {bits: space.uniform(spec, bits) for bits in space.bits(spec)}
    best = uniform[max(uniform)]
    swaps = {
        (unit.name, choice): best.replace(unit.name, choice)
        for unit in spec.units
        if unit.is_table
        for choice in space[unit.name]
    }
    trials = _pruned_trials(space, best, removals)
    subnets = list(dict.fromkeys([*uniform.values(), *swaps.values(), *trials.values()]))
    measured = dict(zip(subnets, evaluate(supernet, subnets, reference, progress), strict=True))
    for (name, choice), subnet in swaps.items():
        # what the table adds to the best subnet; its largest choice is in every measurement and counts as nothing
        table.setdefault(name, {})[choice] = max(measured[subnet].kl - measured[best].kl, 0.0)
    for bits, subnet in uniform.items():
        total = sum(table[unit.name][subnet[unit.name]] for unit in linear_units)
        for unit in linear_units:
            for choice in space[unit.name]:
                if choice.bits == bits:
                    table[unit.name][choice] *= measured[subnet].kl / max(total, 1e-30)
    for level, subnet in trials.items():
        predicted = sum(table[unit][choice] for unit, choice in subnet)
        gone = max(measured[subnet].kl - predicted, LEAST_SHARE * measured[subnet].kl)
        _add_removals(table, removals, level, gone, subnet)
    return {unit.name: table[unit.name] for unit in spec.units}, measured


def _pruned_trials(space: SearchSpace, best: Subnet, removals: Removals) -> dict[int, Subnet]:
    """For each place in the list of numbers of channels: the best subnet with so many in a quarter of the blocks, those
    that lose least by it."""
    levels = {block: sorted({c.kept for c in space[block[0]] if c.kept is not None}) for block in space.coupled}
    found = {}
    for level in range(max(map(len, levels.values()), default=0)):
        blocks = [block for block, kept in levels.items() if level < len(kept)]
        blocks.sort(key=lambda block: removals[block[-1]][levels[block][level]])
        subnet = best
        for block in blocks[: max(1, round(len(blocks) * PRUNED_AT_ONCE))]:
            for unit in block:
                subnet = subnet.replace(unit, space.pruned(unit, best[unit], levels[block][level]))
        found[level] = subnet
    return found


def _add_removals(table: Table, removals: Removals, level: int, measured: float, subnet: Subnet) -> None:
    """Add to every choice of this level what its removal costs, scaled so that the trial's removals cost `measured`."""
    at = {unit: sorted(costs)[level] for unit, costs in removals.items() if level < len(costs)}
    tried = sum(removals[unit][kept] for unit, kept in at.items() if subnet[unit].kept == kept)
    for unit, kept in at.items():
        for choice in table[unit]:
            if choice.kept == kept:
                table[unit][choice] += removals[unit][kept] * measured / max(tried, 1e-30)


def fisher(
    model: Any, supernet: Supernet, units: list[UnitSpec], windows: Tensor, seed: int, progress: Progress = silent
) -> Table:
    """The quadratic form above for every choice of `units`, before any scaling, of the channels that are kept alone."""
    return fisher_parts(model, supernet, units, windows, seed, progress)[0]


def fisher_parts(
    model: Any, supernet: Supernet, units: list[UnitSpec], windows: Tensor, seed: int, progress: Progress = silent
) -> tuple[Table, Removals]:
    """The quadratic form, apart for what choices do to the channels they keep and for the channels that are gone."""
    moves = _Moves(supernet, units)
    each_drawn_gradient(model, list(moves.unit_of), windows, seed, moves.collect, partial(progress, "sensitivities"),
                        moves.close)  # fmt: skip
    tokens = windows.numel()
    table: Table = {u.name: {c: 0.5 * moves.kept[u.name, c] / tokens for c in supernet.space[u.name]} for u in units}
    removals: Removals = defaultdict(dict)
    for (unit, kept), total in moves.gone.items():
        removals[unit][kept] = 0.5 * total / tokens
    return table, dict(removals)


class _Moves:
    """Sums over tokens of the squares of `g . dW x`, by unit and choice, and by reading unit and channels kept."""

    def __init__(self, supernet: Supernet, units: list[UnitSpec]) -> None:
        self.supernet = supernet
        self.unit_of = {linear.name: unit for unit in units for linear in unit.linears}
        self.kept: dict[tuple[str, Choice], float] = defaultdict(float)
        self.gone: dict[tuple[str, int], float] = defaultdict(float)
        self._window: dict[tuple[str, Choice, str], Tensor] = {}

    def collect(self, linear: str, module: Any, x: Tensor, grad: Tensor) -> None:
        unit, matrix, weight = self.unit_of[linear], self.supernet.matrices[linear], module.weight
        options = self.supernet.space[unit.name]
        for choice in self.supernet.space.whole[unit.name]:
            change = (matrix.effective(choice) - weight).to(x.dtype)
            self._add(unit, choice, linear, ((x @ change.T) * grad).sum(-1, dtype=torch.float32))
            pruned = [c for c in options if c.kept is not None and c.whole == choice]
            if pruned:
                by_channel = _by_channel(unit, change, x, grad)
                for part in pruned:
                    self._add(unit, part, linear, by_channel[:, : part.kept].sum(-1))
        counts = {choice.kept for choice in options if choice.kept is not None}
        if counts and unit.channels is not None and not unit.channels.parts:
            by_channel = _by_channel(unit, weight, x, grad)
            for kept in counts:
                self.gone[unit.name, kept] += by_channel[:, kept:].sum(-1).double().square().sum().item()

    def _add(self, unit: UnitSpec, choice: Choice, linear: str, moved: Tensor) -> None:
        """A unit's linears move the output together: they are summed before they are squared. Experts read tokens of
        their own, and are summed after."""
        key = (unit.name, choice, "" if unit.chosen is None else linear)
        self._window[key] = self._window[key] + moved if key in self._window else moved

    def close(self) -> None:
        """A batch is done."""
        for (unit, choice, _), moved in self._window.items():
            self.kept[unit, choice] += moved.double().square().sum().item()
        self._window.clear()


def _by_channel(unit: UnitSpec, change: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    """What each feed-forward channel adds to `g . dW x`, `(tokens, channels)`."""
    channels = unit.channels
    assert channels is not None
    if channels.parts:
        return ((x @ change.T) * grad).unflatten(-1, (channels.parts, channels.count)).sum(-2)
    return (grad @ change) * x


def each_gradient(
    model: Any, linears: Sequence[str], windows: Tensor, backward: Callable[[Tensor], object], collect: Collect,
    report: Callable[[int, int], None] = lambda done, total: None, close: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Call `collect(linear, module, x, g)` for every linear and batch of `TOGETHER` windows, and `close` after each.

    x `(tokens, in_features)` and g `(tokens, out_features)`, the gradient of what `backward(batch)` goes back from.
    """

    hooks = _hooks({model.get_submodule(name): name for name in linears}, collect)
    embedded = model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_())
    with removed_after([*hooks, embedded]):
        for start in range(0, len(windows), TOGETHER):
            report(start, len(windows))
            backward(windows[start : start + TOGETHER].to(model.device))
            close()
        report(len(windows), len(windows))


def each_drawn_gradient(
    model: Any, linears: Sequence[str], windows: Tensor, seed: int, collect: Collect,
    report: Callable[[int, int], None] = lambda done, total: None, close: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """`each_gradient` of log p(y) with y drawn from the full `model`, a decoder block after the other: for each block
    all batches. Linears are those of the blocks."""
    names, blocks = {model.get_submodule(name): name for name in linears}, len(decoder_layers(model))
    report(0, blocks)

    def watch(part: torch.nn.Module) -> list[Any]:
        return _hooks({module: names[module] for module in part.modules() if module in names}, collect)

    for number in backward(model, windows.to(model.device), seed, model.dtype, watch, close=close):
        report(blocks - number, blocks)
        if streams(model):
            give_back_pages()


def _hooks(names: Mapping[torch.nn.Module, str], collect: Collect) -> list[Any]:
    """Hooks that give `collect` what each of these linears reads and the gradient of what it makes."""

    @torch.no_grad()
    def found(module: torch.nn.Module, x: Tensor, grad: Tensor) -> None:
        collect(names[module], module, x.flatten(0, -2), grad.flatten(0, -2))

    def forward_hook(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach()
        output.register_hook(lambda grad: found(module, x, grad))

    return [module.register_forward_hook(forward_hook) for module in names]


def drawn(model: Any, seed: int) -> Callable[[Tensor], None]:
    """Goes back from log p(y) of a batch of windows, with y drawn from the model."""
    generator = torch.Generator(device=model.device).manual_seed(seed)

    def backward(batch: Tensor) -> None:
        with torch.enable_grad():
            hidden = hidden_states(model, batch)
            hidden.backward(label_gradient(model, hidden, generator))

    return backward
