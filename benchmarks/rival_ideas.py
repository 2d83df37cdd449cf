"""What others' ideas are worth beside GPTQ and learned rounding, at equal steps, with seconds of a core.

    python benchmarks/rival_ideas.py --text FOLDER --model FOLDER [--bits 2,3,4] [--seeds 0,1] [--steps 32]

One idea changed at a time, in groups of 64 on the integer grid, without channel scales or adapters, tables at 8 bits:

- GPTQ: the project's, Hessians that weigh tokens
- YAQA (arXiv 2505.22988): the same, and errors spread over later rows too, by a Hessian of the outputs' side
- learned rounding: the project's, started from GPTQ's codes, which models that were never quantized want; with a
  Hessian of each linear's inputs alone, and with one of its outputs too
- GSQ (arXiv 2604.18556): a softmax over the codes next to GPTQ's for every weight, with Gumbel noise and a temperature
  that falls, in place of an offset of half a code; and the same without noise
- Block-AP of EfficientQAT (arXiv 2407.11062): every weight moves freely through the rounding, by Adam with momentum

The last three learn scales along, on the same batches of 4 windows and by the same error of a block's output. KL
divergence per token from the full model on 16 windows of 512 tokens of each held-out text there, in thousandths.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from claims import finish, table
from torch import Tensor, nn

from records.atomic import write_text
from supernet.adapters import Adapter
from supernet.backward import backward
from supernet.blocks import output_of
from supernet.build import Supernet, build
from supernet.choices import make_space
from supernet.evaluate import Reference, evaluate
from supernet.grids import QuantizedWeight
from supernet.hessians import POWER
from supernet.loading import load_model
from supernet.model import removed_after, spec_of_model
from supernet.progress import silent
from supernet.quantizers import GPTQ, RTN, YAQA
from supernet.refiners import Learned, learned, starts
from supernet.refiners.starts import Start
from supernet.refiners.turn import AT_ONCE, Block, Part, Turn
from supernet.space import Choice
from supernet.text import read_windows, spread_windows

GROUP, TABLES = 64, 8
CALIBRATION, WINDOW = 64, 256
HELD_OUT = ("eval.txt", "packages.txt")

Hessians = dict[str, tuple[Tensor, Tensor]]
"""By linear: of its inputs, and of its outputs."""


def both_sides(model: Any, linears: Sequence[str], windows: Tensor, seed: int) -> Hessians:
    """H_in = sum |g|^1.5 x x^T, the project's own, and H_out = sum |x|^1.5 g g^T: YAQA's sketch A after one round,
    with tokens weighed as ours are."""
    sums: Hessians = {}
    names = {model.get_submodule(name): name for name in linears}

    def watch(layer: nn.Module) -> list[Any]:
        def forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].detach().flatten(0, -2)
            output.register_hook(lambda g: add(names[module], x, g.flatten(0, -2)))

        return [m.register_forward_hook(forward) for m in layer.modules() if m in names]

    @torch.no_grad()
    def add(name: str, x: Tensor, g: Tensor) -> None:
        old = sums.get(name, (0.0, 0.0))
        weighed = [a.T @ (a * b.square().sum(-1, keepdim=True).pow(POWER)) for a, b in ((x, g), (g, x))]
        sums[name] = (old[0] + weighed[0], old[1] + weighed[1])

    for _ in backward(model, windows, seed, torch.float32, watch):
        pass
    return sums


def yaqa_start(turn: Turn) -> Start:
    """As the start from GPTQ's codes, with a Hessian of the outputs' side too, of the block's own error."""
    modules, inputs = [part.module for part in turn.parts], turn.inputs[: starts.SOLVED]
    sums, others = starts.hessians(turn.block, modules, inputs), output_hessians(turn.block, modules, inputs)
    start = []
    with torch.no_grad():
        for part, hessian, outputs in zip(turn.parts, sums, others, strict=True):
            found, moved = YAQA().solve(part.weight, [part.choice], hessian, outputs)[part.choice]
            start.append((found, torch.lerp(found.dequantize(), moved, starts.INWARD)))
    return start


def output_hessians(block: Block, modules: Sequence[nn.Module], inputs: Tensor) -> list[Tensor]:
    """Sums of `|x|^2 g g^T` over the tokens of `inputs`, float32, one for each of the full model's `modules`, with g
    the gradient of a random vote of what the block makes, each number's variance its weight in the block's error: the
    mean over votes is what Gauss and Newton take for that error's second derivative."""
    sums: dict[nn.Module, Tensor] = {}
    generator = torch.Generator(inputs.device).manual_seed(0)

    def watch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        reads = args[0].detach().flatten(0, -2).float().square().sum(-1, keepdim=True)

        def add(grad: Tensor) -> None:
            g = grad.flatten(0, -2).float()
            if module not in sums:
                sums[module] = g.new_zeros(g.shape[1], g.shape[1])
            sums[module].addmm_(g.T, g * reads)

        output.register_hook(add)

    with removed_after([module.register_forward_hook(watch) for module in modules]):
        for start in range(0, len(inputs), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            output = output_of(block.layer, inputs[rows].detach().clone().requires_grad_(), block.arguments)
            vote = torch.randn(output.shape, generator=generator, device=output.device)
            output.backward((vote * (block.tokens[rows].unsqueeze(-1) * block.channels).sqrt()).to(output.dtype))
    sides = {module: int(module.weight.shape[0]) for module in modules}  # type: ignore[index]
    return [sums.get(module, torch.zeros(side, side, device=inputs.device)) for module, side in sides.items()]


class Softened(Adapter):
    """GSQ: codes are means over those at hand, by a softmax of what is learned, which grows hard."""

    deploys = "codes"
    learning_rate = 0.3
    noise = 1.0
    warmest, coldest = 1.0, 0.1
    sharpness = 16.0  # of the start, by the squared distance in codes

    def __init__(self, weight: QuantizedWeight, full: Tensor) -> None:
        super().__init__(weight, torch.Generator(), full)
        top, zero = 2**weight.choice.bits - 1, weight.zero.float().repeat_interleave(GROUP, 1)
        codes = weight.grid.codes(weight).float()
        near = [codes + step for step in (-1, 0, 1)] if top > 3 else [torch.full_like(codes, c) for c in range(4)]
        self.near = torch.stack(near)
        place = full / weight.scale.repeat_interleave(GROUP, 1) + zero
        far = self.sharpness * (self.near - place).square()
        logits = far.neg().masked_fill((self.near < 0) | (self.near > top), -torch.inf)
        self.zero, self.temperature = zero, self.warmest
        self.logits, self.delta = nn.Parameter(logits), nn.Parameter(torch.zeros_like(weight.scale))

    def groups(self, steps: int) -> list[dict[str, Any]]:
        return [{"params": [self.logits], "lr": self.learning_rate}, scales(self.delta, steps)]

    def cool(self, share: float) -> None:
        self.temperature = self.warmest * (self.coldest / self.warmest) ** share

    def forward(self, x: Tensor, weight: QuantizedWeight) -> Tensor:
        logits = self.logits
        if self.noise:
            logits = logits - self.noise * torch.empty_like(logits).exponential_().log_()
        codes = ((logits / self.temperature).softmax(0) * self.near).sum(0)
        return nn.functional.linear(x, (codes - self.zero) * self._scale(weight).repeat_interleave(GROUP, 1))

    def _scale(self, weight: QuantizedWeight) -> Tensor:
        return weight.scale * (1 + self.delta)

    def fold(self, weight: QuantizedWeight) -> QuantizedWeight:
        codes = self.near.gather(0, self.logits.detach().argmax(0, keepdim=True))[0]
        return weight.grid.pack(codes, self._scale(weight).detach(), weight.zero, weight.choice, weight.in_features)


class Noiseless(Softened):
    noise = 0.0


class Free(Adapter):
    """Block-AP: a weight moves as far as it likes, in units of a code; scales and zeros by the same gradient."""

    deploys = "codes"
    reach = 0.5  # codes that a weight moves at most, were all its steps alike

    def __init__(self, weight: QuantizedWeight, full: Tensor) -> None:
        super().__init__(weight, torch.Generator(), full)
        self.top = 2**weight.choice.bits - 1
        self.start = weight.scale
        self.place = nn.Parameter(full / weight.scale.repeat_interleave(GROUP, 1))
        self.delta, self.zero = nn.Parameter(torch.zeros_like(weight.scale)), nn.Parameter(weight.zero.float())

    def groups(self, steps: int) -> list[dict[str, Any]]:
        return [{"params": [self.place], "lr": self.reach / steps}, scales(self.delta, steps), scales(self.zero, steps)]

    def cool(self, share: float) -> None:
        """Nothing is soft here."""

    def _codes(self) -> tuple[Tensor, Tensor]:
        zero = straight(self.zero.clamp(0, self.top)).repeat_interleave(GROUP, 1)
        return (straight(self.place / (1 + self.delta.repeat_interleave(GROUP, 1))) + zero).clamp(0, self.top), zero

    def forward(self, x: Tensor, weight: QuantizedWeight) -> Tensor:
        codes, zero = self._codes()
        return nn.functional.linear(x, (codes - zero) * (self.start * (1 + self.delta)).repeat_interleave(GROUP, 1))

    @torch.no_grad()
    def fold(self, weight: QuantizedWeight) -> QuantizedWeight:
        codes, zero = self._codes()
        scale = self.start * (1 + self.delta)
        return weight.grid.pack(codes, scale, zero[:, ::GROUP], weight.choice, weight.in_features)


def straight(value: Tensor) -> Tensor:
    """Rounded; the gradient passes as if it were not."""
    return value + (value.round() - value).detach()


def scales(parameter: nn.Parameter, steps: int) -> dict[str, Any]:
    """At the rate of learned rounding's."""
    return {"params": [parameter], "lr": learned.SCALE_RATE / steps}


class Descent:
    """Adam whose rates fall to 0."""

    def __init__(self, adapters: Sequence[Any], steps: int, betas: tuple[float, float]) -> None:
        self.adapters, self.steps, self.done = adapters, steps, 0
        self.optimizer = torch.optim.Adam([g for a in adapters for g in a.groups(steps)], betas=betas, eps=1e-16)
        self.rates = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 - step / steps)

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.rates.step()
        self.done += 1
        for adapter in self.adapters:
            adapter.cool(self.done / self.steps)


def adapted(parts: Sequence[Part], start: Start, kind: Callable[[QuantizedWeight, Tensor], Adapter]) -> list[Any]:
    made = []
    for part, (codes, weight) in zip(parts, start, strict=True):
        part.matrix.store(codes)
        part.matrix.select(part.choice)
        made.append(kind(codes, weight))
        part.matrix.adapt([part.choice], made[-1])
    return made


EARLIER = ("GPTQ", "YAQA", "learned rounding from GPTQ", "learned rounding from YAQA")
IDEAS: dict[str, tuple[type[Any], tuple[float, float]]] = {
    "GSQ": (Softened, (0.9, 0.95)),
    "GSQ without noise": (Noiseless, (0.9, 0.95)),
    "Block-AP": (Free, (0.9, 0.95)),
}


class Setting:
    def __init__(self, text: Path, model: str, windows: int, seed: int) -> None:
        full = load_model(model)
        self.model, self.seed = full.model, seed
        self.spec = spec_of_model(self.model, model)
        self.windows = spread_windows(str(text / "train.txt"), full.tokenizer, windows + CALIBRATION, WINDOW, seed)
        references = {name: read_windows(str(text / name), full.tokenizer, 16, 512) for name in HELD_OUT}
        self.references = {name: Reference.of(self.model, some) for name, some in references.items()}
        self.linears = [lin.name for u in self.spec.units if not u.is_table for lin in u.linears]
        started = time.process_time()
        self.hessians = both_sides(self.model, self.linears, self.windows[:CALIBRATION], seed)
        print(f"Hessians: {time.process_time() - started:.0f} s", flush=True)

    def rows(self, bits: int, steps: int, ideas: Sequence[str]) -> Iterator[tuple[str, float, dict[str, float]]]:
        """Name, seconds and KL by text."""
        choice = Choice(bits, GROUP, "int")
        makes: dict[str, Callable[[], Supernet]] = {
            "GPTQ": partial(self.solved, choice, False),
            "YAQA": partial(self.solved, choice, True),
            "learned rounding from GPTQ": partial(self.learned, bits, steps),
            "learned rounding from YAQA": partial(self.learned, bits, steps, STARTS={"yaqa": yaqa_start}),
        }
        for name, (kind, betas) in IDEAS.items():
            patches = {"_adapt": partial(adapted, kind=kind), "_Descent": partial(Descent, betas=betas)}
            makes[name] = partial(self.learned, bits, steps, **patches)
        for name in ideas:
            supernet, seconds = timed(makes[name])
            yield name, seconds, self.losses(supernet, bits)

    def solved(self, choice: Choice, outputs: bool) -> Supernet:
        codes = {}
        for name in self.linears:
            weight, (ours, theirs) = self.model.get_submodule(name).weight.detach(), self.hessians[name]
            quantizer = YAQA() if outputs else GPTQ()
            codes[name] = quantizer.quantize(weight, [choice], ours, theirs)
        return self.supernet(choice.bits, codes)

    def supernet(self, bits: int, codes: dict[str, dict[Choice, QuantizedWeight]]) -> Supernet:
        space = make_space(self.spec, (bits, TABLES), GROUP, grid="int")
        weights = {}
        for unit in self.spec.units:
            for linear in unit.linears:
                full, known = self.model.get_submodule(linear.name).weight.detach(), codes.get(linear.name, {})
                missing = [c for c in space[unit.name] if c not in known]
                nearest = RTN() if unit.is_table else RTN(clip=True)
                hessian = None if unit.is_table else self.hessians[linear.name][0]
                weights[linear.name] = nearest.quantize(full, missing, hessian) | known
        return build(self.model, self.spec, space, weights)

    def learned(self, bits: int, steps: int, **patches: Any) -> Supernet:
        """Learned rounding with parts of it changed. Its own start is GPTQ's: the model's blocks are few."""
        supernet = self.supernet(bits, {})
        with patch.multiple(learned, **{"STARTS": {"gptq": learned.STARTS["gptq"]}, **patches}):
            learner = Learned(steps=steps, batch=4, widest=bits)
            learner.refine(self.model, self.model, supernet, self.windows[CALIBRATION:], self.seed, silent)
        return supernet

    def losses(self, supernet: Supernet, bits: int) -> dict[str, float]:
        space = supernet.space
        subnet = space.uniform(self.spec, bits)
        return {name: evaluate(supernet, [subnet], text)[0].kl * 1000 for name, text in self.references.items()}


def timed(make: Callable[[], Supernet]) -> tuple[Supernet, float]:
    started = time.process_time()
    made = make()
    return made, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--bits", default="2,3,4")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=32, help="of learned rounding on each block")
    parser.add_argument("--ideas", default=",".join((*EARLIER, *IDEAS)))
    parser.add_argument("--out", type=Path, help="rows are written there as they come")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in map(int, arguments.seeds.split(",")):
        setting = Setting(arguments.text, arguments.model, 4 * arguments.steps, seed)
        for bits in map(int, arguments.bits.split(",")):
            for name, seconds, kl in setting.rows(bits, arguments.steps, arguments.ideas.split(",")):
                rows.append({"seed": seed, "bits": bits, "name": name, "seconds": seconds, "kl": kl})
                print(seed, bits, name, f"{seconds:.0f} s", *(f"{v:.3f}" for v in kl.values()), flush=True)
                if arguments.out:
                    write_text(arguments.out, json.dumps(rows, indent=1) + "\n")
    cells = [
        (r["name"], r["seed"], r["bits"], f"{r['seconds']:.0f}", *(f"{v:.2f}" for v in r["kl"].values())) for r in rows
    ]
    table(("", "seed", "bits", "seconds", *HELD_OUT), cells)
    finish(__file__, [], rows=rows)


if __name__ == "__main__":
    main()
