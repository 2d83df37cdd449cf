"""One training against one for each bit-width, each of as many steps as the one takes in all.

    python benchmarks/quality.py --text ../shared/text --full --keep FOLDER
    python benchmarks/separate.py --text ../shared/text --supernet FOLDER [--bits 2,3,4]

Full training learns codes for each bit-width by itself, which a separate training would do alike; then its bit-widths
share the steps. The separate ones take as many steps each, from the same codes (quality.py keeps them beside FOLDER)
and on the same windows of train.txt. Where a step of the one trains several subnets, the separate ones take the more
steps for it: as many as cost the same, by two of each that are timed first. KL divergence per token from the full model
on 16 windows of 512 tokens of eval.txt.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from claims import Claim, finish, table
from rival_tools import from_tensors
from training import start_of, step_seconds, train

from supernet.adapters import ADAPTERS
from supernet.build import Supernet, build
from supernet.checkpoint import open_supernet
from supernet.evaluate import Reference, evaluate
from supernet.files import read_tensors
from supernet.loading import DEFAULT_MODEL, load_model
from supernet.model import in_compute_dtype
from supernet.prepared import as_prepared
from supernet.recipe import Recipe
from supernet.samplers import SAMPLERS
from supernet.stages.amounts import MEASURED, READ
from supernet.text import read_windows, spread_windows
from supernet.train import TrainOptions

NEAR = 1.05  # how near one training must come to separate ones
Row = dict[str, Any]


class Setting:
    def __init__(self, text: Path, supernet: Path, windows: int) -> None:
        self.files = open_supernet(supernet)
        self.codes = read_tensors(start_of(supernet))[0]
        self.recipe = Recipe.from_json(self.files.info["recipe"])
        full = load_model(DEFAULT_MODEL)
        self.model, tokenizer = full.model, full.tokenizer
        self.reference = Reference.of(self.model, read_windows(str(text / "eval.txt"), tokenizer, windows, 512))
        source, count, tokens = str(text / "train.txt"), MEASURED + READ, self.recipe.window_tokens
        self.windows = spread_windows(source, tokenizer, count, tokens, self.recipe.seed)[MEASURED:]
        as_prepared(self.model, self.files)
        self.teacher = in_compute_dtype(self.model)
        self.steps = self.affordable()

    def affordable(self) -> int:
        """Steps of one subnet that cost what the one training's steps did."""
        steps: int = self.files.info["steps"]
        if not SAMPLERS[self.recipe.sampler].several:
            return steps
        supernet = self.untrained(self.recipe.adapted_bits)
        one, several = (
            step_seconds(self.teacher, supernet, self.windows, sampler) for sampler in ("uniform", self.recipe.sampler)
        )
        print(f"seconds of a step: {several:.2f}, of one subnet {one:.2f}", flush=True)
        return round(steps * several / one)

    def untrained(self, bits: tuple[int, ...]) -> Supernet:
        """The codes that training started from, with adapters at `bits`."""
        recipe, spec = self.recipe, self.files.spec
        supernet = build(self.model, spec, self.files.space, from_tensors(self.codes))
        shape = recipe.adapter_options(len(spec.units))
        supernet.adapt(ADAPTERS[recipe.adapter], bits, recipe.seed, full=self.model, **shape)
        return supernet

    def measure(self, supernet: Supernet, bits: int) -> float:
        return evaluate(supernet, [self.files.space.uniform(self.files.spec, bits)], self.reference)[0].kl

    def compare(self, bits: int) -> Row:
        recipe, steps = self.recipe, self.steps
        joint = self.measure(self.files.load(), bits)
        supernet = self.untrained((bits,))
        codes = self.measure(supernet, bits)  # adapters change nothing before their first step
        options = TrainOptions(steps, recipe.rate, recipe.batch, recipe.seed, save_every=steps)
        seconds = train(self.teacher, supernet, self.windows, options, "uniform")
        separate = self.measure(supernet, bits)
        row = {"bits": bits, "codes": codes, "joint": joint, "separate": separate, "steps": steps, "seconds": seconds}
        print(row, flush=True)
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--supernet", type=Path, required=True, help="a finished one, trained on the text")
    parser.add_argument("--bits", help="by default all that had adapters")
    parser.add_argument("--windows", type=int, default=16)
    arguments = parser.parse_args()
    setting = Setting(arguments.text, arguments.supernet, arguments.windows)
    widths = arguments.bits.split(",") if arguments.bits else setting.recipe.adapted_bits
    rows = [setting.compare(int(bits)) for bits in widths]
    cells = [
        (r["bits"], *(f"{r[key]:.4f}" for key in ("codes", "joint", "separate")), f"{r['seconds']:.0f}") for r in rows
    ]
    table(("bits", "codes", "one training", "steps of its own", "seconds of those"), cells)
    claims = [Claim(f"{r['bits']} bits: KL of one training / separate", r["joint"] / r["separate"], NEAR) for r in rows]
    finish(__file__, claims, rows=rows)


if __name__ == "__main__":
    main()
