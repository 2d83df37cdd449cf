"""What each grid loses at its bytes: GPTQ alone, and after training the scales for the same steps.

    python benchmarks/grids.py --text ../shared/text --steps 40 [--model ~/.cache/bitfleet/reference-model]

The folder of --text holds train.txt and eval.txt. The model is the embedded default unless told otherwise; quality is
KL divergence per token from the full model on windows of 512 tokens of eval.txt, embedding and head at 8 bits. All
choices are solved from the same Hessians; each set of three bit-widths trains alone, by the same windows, seed and
steps. Bits a weight count scales and zeros: float32 and the zero's bits for `int` in ONNX Runtime, float16 for `sym`
and the blocks of K types for `k` in a GGUF file. The grid `k` is there where the model's rows are multiples of 256, as
those of the reference model are (reference_model.py).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from claims import Claim, finish, table
from torch import Tensor
from training import train

from planner.runtimes.llamacpp.formats import type_of
from supernet.adapters import ADAPTERS
from supernet.build import Supernet, Weights, build
from supernet.choices import make_space
from supernet.evaluate import Reference, evaluate
from supernet.files import read_tensors, write_tensors
from supernet.formats import FORMATS
from supernet.grids import GRIDS, QuantizedWeight
from supernet.loading import DEFAULT_MODEL, load_model, model_name
from supernet.model import in_compute_dtype, spec_of_model
from supernet.quantize import quantize
from supernet.quantizers import GPTQ
from supernet.shelf import code_tensors
from supernet.space import Choice, SearchSpace
from supernet.spec import ModelSpec
from supernet.stages.amounts import CALIBRATION
from supernet.text import read_windows, spread_windows
from supernet.train import TrainOptions

BITS = (2, 3, 4)
SETS = {
    "int, groups of 64": ("int", 64),
    "sym, groups of 64": ("sym", 64),
    "sym, 32 at 4 bits": ("sym", {2: 64, 3: 64, 4: 32, 8: 32}),
    "sym, groups of 32": ("sym", 32),
    "k": ("k", {2: 16, 3: 16, 4: 32, 6: 16, 8: 32}),
}
TRAINED = ("int, groups of 64", "sym, 32 at 4 bits", "k")
WORSE = 1.1  # times the KL of the free zero in groups of 64 that the symmetric grid may leave, as it is trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--keep", type=Path, help="codes of before are read from this file, or written to it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    full = load_model(arguments.model)
    spec = spec_of_model(full.model, model_name(arguments.model))
    reference = Reference.of(
        full.model, read_windows(str(arguments.text / "eval.txt"), full.tokenizer, arguments.windows, 512)
    )
    windows = spread_windows(str(arguments.text / "train.txt"), full.tokenizer, 512, 256, arguments.seed)
    widths = [linear.in_features for unit in spec.units for linear in unit.linears]
    spaces = {
        name: make_space(spec, BITS, size, grid=grid)
        for name, (grid, size) in SETS.items()
        if not any(width % FORMATS[grid].block for width in widths)
    }
    every = SearchSpace.of({u.name: sum((space[u.name] for space in spaces.values()), ()) for u in spec.units})
    weights = solved(full.model, spec, every, windows[:CALIBRATION], arguments)
    codes: dict[str, list[float]] = {}
    for name, space in spaces.items():
        codes[name] = losses(supernet_of(full.model, spec, space, weights), reference)
        print(name, "codes", *(f"{kl:.4f}" for kl in codes[name]), flush=True)
    after = {name: [math.nan] * len(BITS) for name in spaces}
    for name in [name for name in TRAINED if name in spaces] if arguments.steps else ():
        net = supernet_of(full.model, spec, spaces[name], weights)
        train_scales(in_compute_dtype(full.model), net, windows, arguments)
        after[name] = losses(net, reference)
        print(name, "trained", *(f"{kl:.4f}" for kl in after[name]), flush=True)
    rows = []
    for name, space in spaces.items():
        choices = [choice for choice in space[spec.units[1].name] if choice.bits in BITS]
        for choice, before, then in zip(choices, codes[name], after[name], strict=True):
            rows.append((f"{name}, {choice.bits} bits", str(choice), stored_bits(choice), before, then))
    table(
        ("", "choice", "bits a weight", "KL of codes", "trained"),
        [(*row[:2], f"{row[2]:.3f}", *("" if math.isnan(kl) else f"{kl:.4f}" for kl in row[3:])) for row in rows],
    )
    names = ("name", "choice", "bits_a_weight", "codes", "trained")
    finish(__file__, claims(codes, after), rows=[dict(zip(names, row, strict=True)) for row in rows])


def solved(model: Any, spec: ModelSpec, space: SearchSpace, windows: Tensor, arguments: argparse.Namespace) -> Weights:
    keep: Path | None = arguments.keep
    if keep is not None and keep.is_file():
        found: dict[str, dict[Choice, dict[str, Tensor]]] = {}
        for key, codes in read_tensors(keep)[0].items():
            linear, text, part = key.split("|")
            found.setdefault(linear, {}).setdefault(Choice.parse(text), {})[part] = codes
        widths = {linear.name: linear.in_features for unit in spec.units for linear in unit.linears}
        return {
            linear: {c: joined(parts, c, widths[linear]) for c, parts in by_choice.items()}
            for linear, by_choice in found.items()
        }
    started = time.perf_counter()
    weights = quantize(model, spec, space, GPTQ(), windows, seed=arguments.seed)
    print(f"quantized in {time.perf_counter() - started:.0f} s", flush=True)
    if keep is not None:
        write_tensors(keep, code_tensors(weights))
    return weights


def joined(parts: Mapping[str, Tensor], choice: Choice, in_features: int) -> QuantizedWeight:
    grid = GRIDS[choice.grid]
    return grid.of({name: parts[name] for name in grid.format.parts(choice.bits)}, choice, in_features)


def supernet_of(model: Any, spec: ModelSpec, space: SearchSpace, weights: Weights) -> Supernet:
    mine = {lin.name: {c: weights[lin.name][c] for c in space[u.name]} for u in spec.units for lin in u.linears}
    return build(model, spec, space, mine)


def losses(net: Supernet, reference: Reference) -> list[float]:
    return [quality.kl for quality in evaluate(net, [net.space.uniform(net.spec, b) for b in BITS], reference)]


def train_scales(teacher: Any, net: Supernet, windows: Tensor, arguments: argparse.Namespace) -> None:
    adapter = ADAPTERS["scales"]
    net.adapt(adapter, BITS, arguments.seed)
    options = TrainOptions(arguments.steps, adapter.learning_rate, seed=arguments.seed)
    seconds = train(teacher, net, windows, options, "slimmable")
    net.set_dtype(torch.float32)
    print(f"{arguments.steps} steps in {seconds:.0f} s", flush=True)


def stored_bits(choice: Choice) -> float:
    """Bits a weight in the runtime's file."""
    if choice.format.block > 1:
        return type_of(choice).bits_per_weight
    sides = 16 if choice.format.symmetric else 32 + choice.bits
    return choice.bits + sides / choice.group_size


def claims(codes: Mapping[str, list[float]], trained: Mapping[str, list[float]]) -> list[Claim]:
    first, last, *_ = TRAINED
    return [
        Claim(f"{bits} bits, {what}: symmetric KL / that of a free zero in groups of 64", ours / theirs, WORSE)
        for what, found in (("codes", codes), ("trained", trained))
        for bits, theirs, ours in zip(BITS, found[first], found[last], strict=True)
        if not math.isnan(ours)
    ]


if __name__ == "__main__":
    main()
