"""What learned codes are limited by: their steps, their text, their groups or their bits.

    python benchmarks/limits.py --text ../shared/text [--blocks 4]

Learned rounding of the first blocks of SmolLM2-135M from the nearest codes, all others at 8 bits, by 64 steps on 512
windows at 3 bits in groups of 64, one of them changed at a time. KL divergence per token from the full model, on 16
windows of 512 tokens of eval.txt and on as many tokens of train.txt that were not learned from: what is between the two
is the step from one kind of text to another. Fewer blocks than the model has, so that all of it takes half an hour; the
weights of errors are computed once for all.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

from claims import finish, table
from torch import Tensor

from supernet.awq import channel_scales, rescale
from supernet.blocks import decoder_layers
from supernet.build import Weights, build
from supernet.choices import make_space
from supernet.evaluate import Reference, evaluate
from supernet.loading import DEFAULT_MODEL, load_model
from supernet.model import in_compute_dtype, spec_of_model
from supernet.progress import silent
from supernet.quantize import quantize
from supernet.recipe import Recipe
from supernet.refiners import Learned, learned
from supernet.space import SearchSpace, Subnet
from supernet.stages.amounts import CALIBRATION, ORDERING, READ
from supernet.text import read_windows, spread_windows

WIDEST, WINDOW, HELD_OUT, MOST = 8, 256, 32, 512


@dataclass(frozen=True)
class Point:
    steps: int = 64
    windows: int = 512
    group_size: int = 64
    bits: int = 3


MIDDLE = Point()
CURVES: dict[str, list[Point]] = {
    "steps": [replace(MIDDLE, steps=steps) for steps in (16, 32, 64, 128, 256)],
    "windows": [replace(MIDDLE, windows=windows) for windows in (32, 64, 128, 256, MOST)],
    "group_size": [replace(MIDDLE, group_size=size) for size in (32, 64)],
    "bits": [replace(MIDDLE, bits=bits) for bits in (2, 3, 4)],
}


class Setting:
    def __init__(self, text: Path, blocks: int, seed: int) -> None:
        self.blocks, self.seed = blocks, seed
        full = load_model(DEFAULT_MODEL)
        self.model, tokenizer = full.model, full.tokenizer
        self.spec = spec_of_model(self.model, DEFAULT_MODEL)
        drawn = spread_windows(str(text / "train.txt"), tokenizer, HELD_OUT + READ, WINDOW, seed)
        self.windows = drawn[HELD_OUT : HELD_OUT + MOST]
        self.texts = {
            "eval.txt": Reference.of(self.model, read_windows(str(text / "eval.txt"), tokenizer, 16, 512)),
            "train.txt": Reference.of(self.model, drawn[:HELD_OUT]),
        }
        rescale(self.model, channel_scales(self.model, self.spec, self.windows[:ORDERING], Recipe().awq))
        self.teacher = in_compute_dtype(self.model)

    @cached_property
    def weights(self) -> tuple[Tensor, Tensor]:
        return learned.output_weights(self.teacher, decoder_layers(self.teacher), self.windows, self.seed, silent)

    @cache  # noqa: B019 (one setting lives as long as the run)
    def start(self, bits: int, group_size: int) -> tuple[SearchSpace, Weights]:
        """The codes that learning starts from, of as much text at every point."""
        space = make_space(self.spec, (bits, WIDEST), group_size, grid="int")
        return space, quantize(self.model, self.spec, space, Learned.begins, self.windows[:CALIBRATION])

    def learn(self, point: Point) -> dict[str, float]:
        """KL on each text, of codes that were learned so."""
        space, start = self.start(point.bits, point.group_size)
        quantizer, windows = Learned(point.steps), self.windows[: point.windows]
        supernet = build(self.model, self.spec, space, deepcopy(start))
        supernet.set_dtype(self.teacher.dtype)
        tokens, channels = self.weights

        def known(teacher: Any, layers: Any, windows: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
            return tokens[:, : len(windows)], channels

        def first(model: Any) -> list[Any]:
            return decoder_layers(model)[: self.blocks]

        one_start = {"nearest": learned.STARTS["nearest"]}
        with patch.multiple(learned, output_weights=known, decoder_layers=first, STARTS=one_start):
            quantizer.refine(self.model, self.teacher, supernet, windows, self.seed, silent)
        subnet = self.subnet(space, point.bits)
        return {name: evaluate(supernet, [subnet], text)[0].kl for name, text in self.texts.items()}

    def subnet(self, space: SearchSpace, bits: int) -> Subnet:
        low, high = space.uniform(self.spec, bits), space.uniform(self.spec, WIDEST)
        layers = {unit.name: unit.layer for unit in self.spec.units}
        chosen = {name: layer is not None and layer < self.blocks for name, layer in layers.items()}
        return Subnet.of({name: (low if learns else high)[name] for name, learns in chosen.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--blocks", type=int, default=4, help="how many of the first blocks learn")
    parser.add_argument("--curves", default=",".join(CURVES))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    setting = Setting(arguments.text, arguments.blocks, arguments.seed)
    known: dict[Point, dict[str, float]] = {}
    rows: list[dict[str, Any]] = []
    for curve in arguments.curves.split(","):
        for point in CURVES[curve]:
            if point not in known:
                known[point] = setting.learn(point)
            rows.append({"curve": curve, curve: getattr(point, curve), "kl": known[point]})
            print(f"{curve} {getattr(point, curve)}: {known[point]}", flush=True)
    print_rows(rows, list(setting.texts))
    finish(__file__, [], blocks=arguments.blocks, middle=vars(MIDDLE), rows=rows)


def print_rows(rows: list[dict[str, Any]], texts: list[str]) -> None:
    cells = [(f"{r['curve']} {r[r['curve']]}", *(f"{r['kl'][text]:.4f}" for text in texts)) for r in rows]
    table(("KL", *texts), cells)


if __name__ == "__main__":
    main()
