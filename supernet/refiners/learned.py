"""Learned rounding, one decoder block after the other (AutoRound, Cheng et al., arXiv 2309.05516; block-wise
reconstruction as in BRECQ, Li et al., arXiv 2102.05426).

For each bit-width, a block's codes and scales move until its output is near that of the full model's block. Its input
comes from the quantized blocks before it, its target from the full model alone.

Near is measured where it counts. To second order, an error d of a block's output costs 1/2 E[(g . d)^2], with g the
gradient of log p(y) and y drawn from the model. BRECQ keeps the squares of g for every token and channel; here they are
one weight for each token times one for each channel, which fit in memory at any size; of the first the root, which
leaves less (docs/log.md). Plain squared error is ruled by the few tokens whose activations are a thousand times the
others' and on which little depends: on SmolLM2 at 3 bits it left twice the KL (docs/log.md).

Which start is better depends on the model and the bit-width. The first blocks are learned from each of
`supernet.refiners.starts`, one after the other; with the start by which the whole model then loses less, the blocks
after them being the full model's, learning goes on. A block's own error does not tell, nor do few windows
(docs/log.md).

AutoRound's offsets move by at most half a code and its steps shrink from 1 / steps to 0, as here. It moves them by the
signs of their gradients, and tunes the range of each group. Here offsets and scales move by each gradient over its own
root mean square, Adam without momentum, which leaves 7 % less KL (docs/log.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supernet.adapters.rounding import Rounding
from supernet.backward import backward
from supernet.blocks import decoder_layers, first_inputs, hidden_of, layer_arguments, placed
from supernet.build import Supernet
from supernet.gate import Gate
from supernet.grids import QuantizedWeight
from supernet.linear import Quantized
from supernet.progress import Progress
from supernet.quantizers import GPTQ, RTN
from supernet.quantizers.by_width import ByWidth
from supernet.refiners.base import Refiner
from supernet.refiners.outcome import losses_at_output
from supernet.refiners.pace import Pace
from supernet.refiners.starts import SOLVED, STARTS, Start, gptq, nearest
from supernet.refiners.turn import AT_ONCE, Block, Part, Turn
from supernet.timing import seconds_of

HALF = 0.499  # codes that an offset starts from its cell's centre at most: all but the cell's edge
SCALE_RATE = 0.1  # relative step of a scale, and step of a zero in codes, as a share of an offset's step in codes
BETAS = (0.0, 0.95)  # with momentum, noise moves codes
EPS = 1e-16  # gradients are of a share of the error, and spread over millions of weights
LEAST_STEPS = 8  # fewer move codes without settling them
MOST_STEPS = 128  # of a block that leave less loss; time beyond them is worth more in adapters (docs/log.md)
TRIED = 3  # blocks that learn from every start: the first ones are unlike those that follow
JUDGES = 64  # windows that tell which start was better; by 8 it is often the wrong one
HELD_OUT = 4  # windows that judge each block
TIMED = 4  # windows that tell how long weighing one takes
IMPROVER = "learned rounding"
WEIGHED = 16  # windows whose hidden states wait between two blocks while errors are weighed
TOKEN_POWER = 0.5  # of a token's Fisher information; less noise in it than one label's leaves no less KL


@dataclass(frozen=True)
class Learned(Refiner):
    """`steps` of `batch` windows for every block and bit-width; with `minutes`, what fits into them and helps."""

    steps: int = 50
    batch: int = 8
    minutes: float | None = None

    widest: int = 4
    """Wider codes are left as they are found: they lose too little to win anything back."""

    begins = ByWidth(RTN(clip=True), GPTQ(), (5, 6))

    def within(self, steps: int | None, minutes: float | None) -> Learned:
        return replace(self, steps=steps or self.steps, minutes=None if steps else minutes)

    def refine(
        self, full: Any, teacher: Any, supernet: Supernet, windows: Tensor, seed: int, progress: Progress,
        gate: Gate | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        from accelerate.utils import send_to_device

        layers, own = decoder_layers(teacher), decoder_layers(supernet.model)
        there, widths = windows.device, [b for b in supernet.space.bits(supernet.spec) if b <= self.widest]
        if not widths:
            return {}
        arguments = send_to_device(layer_arguments(teacher, windows[:1]), there)
        steps = self.steps
        if self.minutes is not None:
            steps = self._fitting(full, teacher, supernet, windows, arguments[0], widths)
        windows, held_out = _held_out(windows, steps * self.batch)  # more would not come up
        gate = gate or Gate()
        weights = output_weights(teacher, layers, windows, seed, progress)
        exact = _read_first(teacher, windows)
        chains: Chains = {bits: {start: Chain(exact) for start in STARTS} for bits in widths}
        draw = torch.Generator().manual_seed(seed)
        for number, (layer, ours) in enumerate(zip(layers, own, strict=True)):
            progress("learn rounding", number, len(layers))
            block = Block(layer, ours, arguments[number], *(part[number].to(there) for part in weights))
            with placed(layer, there), placed(ours, there):
                target = block.through(layer, exact)
                change = block.error(target, exact, slice(None)).item()
                for bits, tried in chains.items():
                    parts = _parts(full, teacher, supernet, number, bits)
                    batches = _batches(held_out.start, self.batch, steps, draw, there)
                    for start, chain in tried.items():
                        turn = Turn(block, parts, chain.inputs, target, change, held_out)
                        chain.learn(turn, STARTS[start], batches, gate)
                        if len(tried) > 1:
                            chain.keep(parts, supernet.model.device)
            if number + 1 == min(TRIED, len(layers)):
                chains = _settled(teacher, number, arguments, windows, target, chains)
            exact = target
            progress("learn rounding", number + 1, len(layers))
        return {"block_steps": steps, "starts": {str(bits): start for bits, tried in chains.items() for start in tried}}

    def _fitting(
        self, full: Any, teacher: Any, supernet: Supernet, windows: Tensor, arguments: dict[str, Any],
        widths: Sequence[int],
    ) -> int:  # fmt: skip
        """Steps for each block and bit-width that fit into the minutes, even where all start from GPTQ's codes. Nothing
        is kept of those that are timed, in the first block."""
        started, there = time.perf_counter(), windows.device
        layers, ours = decoder_layers(teacher), decoder_layers(supernet.model)[0]
        few, fewer = windows[:SOLVED], windows[:TIMED]
        weigh = seconds_of(lambda: output_weights(teacher, layers, fewer, 0, lambda *_: None)) / len(fewer)
        inputs = _read_first(teacher, few)
        even = torch.ones(few.shape, device=there), torch.ones(inputs.shape[-1], device=there)
        block = Block(layers[0], ours, arguments, *even)
        with placed(layers[0], there), placed(ours, there):
            turn = Turn(block, _parts(full, teacher, supernet, 0, widths[0]), inputs, inputs, 1.0, slice(0))
            solve = seconds_of(lambda: gptq(turn))
            through = seconds_of(lambda: block.through(layers[0], inputs)) / len(few) * len(layers) * (1 + len(widths))
            descent = _Descent(_adapt(turn.parts, nearest(turn)), LEAST_STEPS)

            def step() -> None:
                turn.backward(torch.arange(min(self.batch, len(inputs)), device=there))
                descent.step()

            pace = Pace(seconds_of(step), solve, weigh + through)
            for part in turn.parts:
                part.matrix.drop([part.choice])
        judged = (1 + len(widths) * len(STARTS)) * JUDGES * weigh / 3  # a third: weighing goes back too
        seconds = 60 * (self.minutes or 0.0) - (time.perf_counter() - started) - judged
        turns = (len(layers) + TRIED * (len(STARTS) - 1)) * len(widths)
        return min(max(LEAST_STEPS, pace.steps(seconds, turns, self.batch, len(windows))), MOST_STEPS)


class Chain:
    """The blocks of one bit-width from one start, so far: what the next one reads, and codes that were kept aside."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs
        self.kept: list[tuple[Quantized, QuantizedWeight]] = []

    def learn(self, turn: Turn, start: Callable[[Turn], Start], batches: Sequence[Tensor], gate: Gate) -> None:
        """The next block, a step for each of `batches`. Its matrices are left with what was learned, or with the
        nearest codes where those leave less error in the windows that are held out."""
        _put_nearest(turn.parts)
        before = turn.held_out_error()
        descent = _Descent(_adapt(turn.parts, start(turn)), len(batches))
        for rows in batches:
            turn.backward(rows)
            descent.step()
        for part in turn.parts:
            part.matrix.fold(part.choice)
        gate.settle(IMPROVER, before, turn.held_out_error(), partial(_put_nearest, turn.parts))
        self.inputs = turn.block.through(turn.block.ours, turn.inputs)

    def keep(self, parts: Sequence[Part], device: torch.device) -> None:
        """What was learned of these, on `device`: another chain goes on with their matrices."""
        self.kept += [(part.matrix, part.matrix.stored(part.choice).to(device)) for part in parts]

    def settle(self) -> None:
        """Give the matrices what was kept."""
        for matrix, codes in self.kept:
            matrix.store(codes)
        self.kept.clear()


Chains = dict[int, dict[str, Chain]]
"""By bit-width and start."""


def _settled(
    teacher: Any, number: int, arguments: Sequence[dict[str, Any]], windows: Tensor, target: Tensor, chains: Chains
) -> Chains:
    """Of each bit-width's chains, the one whose blocks up to `number` cost the model least, its codes in place."""
    tried = [(bits, start) for bits, by_start in chains.items() for start in by_start]
    if len(tried) == len(chains):
        return chains  # one each: there is nothing to judge
    states = [target[:JUDGES], *(chains[bits][start].inputs[:JUDGES] for bits, start in tried)]
    losses = losses_at_output(teacher, number, arguments, windows[:JUDGES], states)
    loss = dict(zip(tried, losses, strict=True))
    settled: Chains = {}
    for bits, by_start in chains.items():
        start = min(by_start, key=lambda name: loss[bits, name])
        settled[bits] = {start: by_start[start]}
        by_start[start].settle()
    return settled


def _put_nearest(parts: Sequence[Part]) -> None:
    for part in parts:
        part.matrix.store(part.nearest)
        part.matrix.select(part.choice)


def _held_out(windows: Tensor, most: int) -> tuple[Tensor, slice]:
    """At most so many windows to learn from with those that only judge after them, and where these are."""
    judging = min(HELD_OUT, -(-len(windows) // 4))
    learning = windows[: len(windows) - judging][:most]
    return torch.cat([learning, windows[-judging:]]), slice(len(learning), len(learning) + judging)


def _read_first(model: Any, windows: Tensor) -> Tensor:
    """What the first block reads of `windows`, where they are."""
    return torch.cat([first_inputs(model, part).to(windows.device) for part in windows.split(AT_ONCE)])


def _batches(windows: int, size: int, steps: int, draw: torch.Generator, device: torch.device) -> Sequence[Tensor]:
    """Rows `(size,)` for each step, sent to `device` at once: all windows before any comes again, since new text is
    worth more than known."""
    size = min(size, windows)
    passes = -(-steps * size // windows)
    drawn = torch.cat([torch.randperm(windows, generator=draw) for _ in range(passes)])
    return drawn[: steps * size].to(device).split(size)


def _parts(full: Any, teacher: Any, supernet: Supernet, layer: int, bits: int) -> list[Part]:
    """The linears of a block with their choice of these bits."""
    subnet = supernet.space.uniform(supernet.spec, bits)
    units = [unit for unit in supernet.spec.units if unit.layer == layer]
    found = []
    for name, choice in ((linear.name, subnet[unit.name]) for unit in units for linear in unit.linears):
        matrix, module = supernet.matrices[name], teacher.get_submodule(name)
        weight = full.get_submodule(name).weight.detach().to(module.weight.device).float()
        found.append(Part(matrix, choice, matrix.stored(choice), module, weight))
    return found


def _adapt(parts: Sequence[Part], start: Start) -> list[Rounding]:
    made = []
    for part, (codes, weight) in zip(parts, start, strict=True):
        part.matrix.store(codes)
        part.matrix.select(part.choice)
        adapter = Rounding(codes, torch.Generator(), weight, rank=None, margin=HALF)
        part.matrix.adapt([part.choice], adapter)
        made.append(adapter)
    return made


class _Descent:
    """Adam at rates from 1 / `steps` of a code, for scales a share of that, to 0. Offsets stay within half a code."""

    def __init__(self, adapters: Sequence[Rounding], steps: int) -> None:
        self.offsets = [adapter.offset for adapter in adapters]
        sides = [side for adapter in adapters for side in (adapter.delta, adapter.shift) if side is not None]
        groups = [{"params": self.offsets, "lr": 1 / steps}, {"params": sides, "lr": SCALE_RATE / steps}]
        self.optimizer = torch.optim.Adam(groups, betas=BETAS, eps=EPS, fused=True)
        self.rates = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 - step / steps)

    @torch.no_grad()
    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.rates.step()
        for offset in self.offsets:
            offset.clamp_(-0.5, 0.5)


def output_weights(
    model: Any, layers: Sequence[nn.Module], windows: Tensor, seed: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """What an error of a block's output costs: `(layers, windows, tokens)` and `(layers, hidden_size)`, mean 1 each."""
    count, length = windows.shape
    tokens = torch.zeros(len(layers), count, length, device=model.device)
    channels = torch.zeros(len(layers), model.config.get_text_config().hidden_size, device=model.device)
    generator = torch.Generator(device=windows.device).manual_seed(seed)
    numbers = {layer: number for number, layer in enumerate(layers)}
    for start in range(0, count, WEIGHED):

        def watch(part: nn.Module, start: int = start) -> list[Any]:
            seen = [start]  # a block goes back some windows at a time, in their order

            def collect(grad: Tensor) -> None:
                squares = grad.float().square().to(model.device)
                tokens[numbers[part], seen[0] : seen[0] + len(grad)] = squares.mean(-1).pow(TOKEN_POWER)
                channels[numbers[part]].add_(squares.sum((0, 1)))
                seen[0] += len(grad)

            def hook(module: nn.Module, args: Any, output: Any) -> None:
                hidden_of(output).register_hook(collect)

            return [part.register_forward_hook(hook)] if part in numbers else []

        some = windows[start : start + WEIGHED]
        for _ in backward(model, some, generator, model.dtype, watch):
            pass
        progress("weigh errors", start + len(some), count)
    tiny = torch.finfo(torch.float32).tiny
    tokens /= tokens.mean((1, 2), keepdim=True).clamp(min=tiny)
    channels /= channels.mean(1, keepdim=True).clamp(min=tiny)
    return tokens, channels
