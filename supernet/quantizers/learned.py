"""Learned rounding, one decoder block after the other (AutoRound, Cheng et al., arXiv 2309.05516; block-wise
reconstruction as in BRECQ, Li et al., arXiv 2102.05426).

For each bit-width, a block's codes and scales move by signed gradients until its output is near that of the full
model's block. Its input comes from the quantized blocks before it, its target from the full model alone.

Near is measured where it counts. To second order, an error d of a block's output costs 1/2 E[(g . d)^2], with g the
gradient of log p(y) and y drawn from the model. BRECQ keeps the squares of g for every token and channel; here they are
one weight for each token times one for each channel, which fit in memory at any size; of the first the root, since one
label tells little of a token. Plain squared error is ruled by the few tokens whose activations are a thousand times the
others' and on which little depends: on SmolLM2 at 3 bits it left twice the KL (docs/log.md).

AutoRound's offsets move by at most half a code and its steps shrink from 1 / steps to 0, as here; it tunes the range
of each group, here the scales.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from supernet.adapters.rounding import Rounding
from supernet.blocks import decoder_layers, first_inputs, hidden_of, layer_arguments, output_of, placed
from supernet.grids import IntegerGrid, QuantizedWeight
from supernet.labels import label_gradient
from supernet.model import hidden_states, removed_after
from supernet.quantizers.base import Quantizer, check_groups
from supernet.space import Choice

if TYPE_CHECKING:
    from supernet.build import Progress, Supernet

HALF = 0.499  # codes that an offset starts from its cell's centre at most: all but the cell's edge
SCALE_RATE = 0.1  # relative step of a scale, as a share of an offset's step in codes
LEAST_STEPS = 8  # fewer move codes without settling them
TIMED = 4  # steps that tell how long one takes
TOKEN_POWER = 0.5  # of a token's Fisher information, which one label estimates with much noise
AT_ONCE = 16  # windows that go through a block side by side


@dataclass(frozen=True)
class Learned(Quantizer):
    """`steps` of `batch` windows for every block and bit-width; with `minutes`, as many as fit into them."""

    steps: int = 50
    batch: int = 8
    minutes: float | None = None

    widest: int = 4
    """Wider codes are left as they are rounded: they lose too little to win anything back."""

    needs_hessian = True
    refines = True

    def quantize(
        self, weight: Tensor, choices: Sequence[Choice], hessian: Tensor | None = None
    ) -> dict[Choice, QuantizedWeight]:
        """Where learning starts: the nearest codes in clipped ranges."""
        check_groups(weight, choices)
        importance = self.calibrated(hessian).diagonal()
        return {choice: IntegerGrid().nearest(weight, choice, importance) for choice in choices}

    def within(self, steps: int | None, minutes: float | None) -> Learned:
        return replace(self, steps=steps or self.steps, minutes=None if steps else minutes)

    def refine(
        self, full: Any, teacher: Any, supernet: Supernet, windows: Tensor, seed: int, progress: Progress
    ) -> dict[str, Any]:
        from accelerate.utils import send_to_device

        started = time.perf_counter()
        layers, own = decoder_layers(teacher), decoder_layers(supernet.model)
        weights = output_weights(teacher, layers, windows, seed, progress)
        there = windows.device
        arguments = send_to_device(layer_arguments(teacher, windows[:1]), there)
        exact = torch.cat([first_inputs(teacher, part).to(there) for part in windows.split(AT_ONCE)])
        widths = [bits for bits in supernet.space.bits(supernet.spec) if bits <= self.widest]
        chains = dict.fromkeys(widths, exact)
        draw, steps = torch.Generator().manual_seed(seed), self.steps
        for number, (layer, ours) in enumerate(zip(layers, own, strict=True)):
            block = _Block(number, ours, arguments[number], *(part[number].to(there) for part in weights))
            with placed(layer, there):
                target = block.through(layer, exact)
            with placed(ours, there):
                if number == 0 and self.minutes is not None and widths:
                    left = self.minutes * 60 - (time.perf_counter() - started)
                    seconds = self._seconds(full, supernet, block, widths[-1], exact, target)
                    steps = max(LEAST_STEPS, int(left / (seconds * len(layers) * len(widths))))
                for bits, inputs in chains.items():
                    self._learn(_adapt(supernet, full, number, bits), block, inputs, target, exact, draw, steps)
                    for name, choice in _linears(supernet, number, bits):
                        supernet.matrices[name].fold(choice)
                    chains[bits] = block.through(ours, inputs)
            exact = target
            progress("learn rounding", number + 1, len(layers))
        return {"block_steps": steps}

    def _learn(
        self, adapters: Sequence[Rounding], block: _Block, inputs: Tensor, target: Tensor, exact: Tensor,
        draw: torch.Generator, steps: int,
    ) -> None:  # fmt: skip
        change = block.error(target, exact, slice(None)).item()  # what the block does at all, to be near 1
        for step in range(steps):
            rows = torch.randint(len(inputs), (min(self.batch, len(inputs)),), generator=draw)
            block.backward(inputs[rows], target[rows], rows, change)
            _move(adapters, (1 - step / steps) / steps)

    def _seconds(
        self, full: Any, supernet: Supernet, block: _Block, bits: int, inputs: Tensor, target: Tensor
    ) -> float:
        """How long a step takes. Nothing is kept of those that were timed."""
        adapters = _adapt(supernet, full, block.number, bits)
        rows = torch.arange(min(self.batch, len(inputs)))
        for step in range(TIMED + 1):
            if step == 1:  # the first one warms up
                started = time.perf_counter()
            block.backward(inputs[rows], target[rows], rows, 1.0)
            _move(adapters, 0.0)
        seconds = (time.perf_counter() - started) / TIMED
        for name, choice in _linears(supernet, block.number, bits):
            supernet.matrices[name].drop([choice])
        return seconds


@dataclass(frozen=True)
class _Block:
    """One decoder block of the supernet, what else it is called with, and what its errors cost."""

    number: int
    ours: nn.Module
    arguments: dict[str, Any]
    tokens: Tensor
    channels: Tensor

    @torch.no_grad()
    def through(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        return torch.cat([output_of(layer, part, self.arguments) for part in inputs.split(AT_ONCE)])

    def error(self, ours: Tensor, target: Tensor, rows: Any) -> Tensor:
        squares = (ours.float() - target.float()).square()
        return ((squares * self.channels).mean(-1) * self.tokens[rows]).mean()

    def backward(self, inputs: Tensor, target: Tensor, rows: Tensor, change: float) -> None:
        output = output_of(self.ours, inputs, self.arguments)
        (self.error(output, target, rows) / change).backward()


def _adapt(supernet: Supernet, full: Any, layer: int, bits: int) -> list[Rounding]:
    made = []
    for name, choice in _linears(supernet, layer, bits):
        matrix = supernet.matrices[name]
        matrix.select(choice)
        weight = full.get_submodule(name).weight
        adapter = Rounding(matrix.stored(choice), torch.Generator(), weight, rank=None, margin=HALF)
        matrix.adapt([choice], adapter)
        made.append(adapter)
    return made


@torch.no_grad()
def _move(adapters: Sequence[Rounding], step: float) -> None:
    """Signed descent: gradients of groups differ by orders of magnitude, the ranges that codes may move in do not."""
    for adapter in adapters:
        for parameter, rate in ((adapter.offset, step), (adapter.delta, step * SCALE_RATE)):
            assert parameter.grad is not None
            parameter.sub_(parameter.grad.sign_(), alpha=rate)
            parameter.grad = None
        adapter.offset.clamp_(-0.5, 0.5)


def _linears(supernet: Supernet, layer: int, bits: int) -> list[tuple[str, Choice]]:
    """The linears of a layer with their choice of these bits."""
    subnet = supernet.space.uniform(supernet.spec, bits)
    units = [unit for unit in supernet.spec.units if unit.layer == layer]
    return [(linear.name, subnet[unit.name]) for unit in units for linear in unit.linears]


def output_weights(
    model: Any, layers: Sequence[nn.Module], windows: Tensor, seed: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """What an error of a block's output costs: `(layers, windows, tokens)` and `(layers, hidden_size)`, mean 1 each."""
    count, length = windows.shape
    tokens = torch.zeros(len(layers), count, length, device=model.device)
    channels = torch.zeros(len(layers), model.config.get_text_config().hidden_size, device=model.device)
    generator = torch.Generator(device=model.device).manual_seed(seed)

    def watch(number: int, start: int) -> Callable[..., None]:
        def collect(grad: Tensor) -> None:
            squares = grad.float().square()
            tokens[number, start : start + len(grad)] = squares.mean(-1).pow(TOKEN_POWER)
            channels[number].add_(squares.sum((0, 1)))

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden_of(output).register_hook(collect)

        return hook

    embedded = model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_())
    with removed_after([embedded]):
        for start in range(0, count, 4):
            with removed_after([layer.register_forward_hook(watch(n, start)) for n, layer in enumerate(layers)]):
                hidden = hidden_states(model, windows[start : start + 4].to(model.device))
                hidden.backward(label_gradient(model, hidden, generator))
            progress("weigh errors", min(start + 4, count), count)
    tiny = torch.finfo(torch.float32).tiny
    tokens /= tokens.mean((1, 2), keepdim=True).clamp(min=tiny)
    channels /= channels.mean(1, keepdim=True).clamp(min=tiny)
    return tokens, channels
