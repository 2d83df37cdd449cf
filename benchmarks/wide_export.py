"""What exporting a subnet of a 7B model takes, and its first token: seconds, CPU seconds and peak memory, by runtime.

    python benchmarks/wide_export.py [--layers 32] [--bits 4] [--runtimes llamacpp,onnxruntime] [--folder DIR]

The shape of Llama-2-7B, codes made up on the spot: neither a model nor a supernet is on disk, so peaks lack what is
mapped of those, which can be given back at any time. Nothing is planned, and no proof is written. Every step runs in a
process of its own, and a peak is that of the largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from claims import Claim, finish
from half_billion import measured, print_rows, save_tokenizer
from scale import SHAPES

SHAPE = SHAPES["Llama-2-7B"]
CONTEXT, TABLE_BITS, MOST_GB = 512, 8, 24.0
PROMPT_TOKENS = 4


class MadeUp:
    """A `planner.runtimes.source.WeightSource` whose matrices of one shape are all the same."""

    trusted = False

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from supernet.model import spec_of_model

        self.model_dir = folder
        self.config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config)
        self.spec = spec_of_model(model, "made up")
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self.made: dict[Any, Any] = {}

    def folded(self, linear: str, choice: Any) -> Any:
        import numpy as np

        from planner.testing.supernets import Folded

        shape = self.shapes[f"{linear}.weight"]
        if (shape, choice) not in self.made:
            codes = np.random.default_rng(0).integers(0, 2**choice.bits, shape, np.uint8)
            groups = shape[0], shape[1] // choice.group_size
            zero = np.full(groups, 2 ** (choice.bits - 1), np.uint8)
            self.made[shape, choice] = Folded(codes, np.full(groups, 0.04 / 2**choice.bits, np.float32), zero)
        return self.made[shape, choice]

    def float_tensors(self) -> Mapping[str, Any]:
        import numpy as np

        return {name: np.ones(shape, np.float32) for name, shape in self.shapes.items() if len(shape) == 1}

    @cached_property
    def _rotaries(self) -> Any:
        from supernet.rotary import rotaries_of

        return rotaries_of(self.config, False)

    def rotaries(self) -> Any:
        return self._rotaries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--runtimes", default="llamacpp,onnxruntime")
    parser.add_argument("--folder", type=Path, help="work here")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        step(*given.step.split("-"), given.folder, given.bits)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        run(Path(temporary), given.layers, given.bits, given.runtimes.split(","))


def run(folder: Path, layers: int, bits: int, runtimes: list[str]) -> None:
    from transformers import AutoConfig

    shape = {**SHAPE, "num_hidden_layers": layers}
    config = AutoConfig.for_model("llama", **shape, tie_word_embeddings=False, bos_token_id=256, eos_token_id=257)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder / "model")
    save_tokenizer(folder / "model")
    os.environ["BITFLEET_CACHE"] = str(folder / "cache")  # the graph is built, too
    rows, written, served = [], {}, {}
    for runtime in runtimes:
        for what in ("export", "run"):
            name = f"{what}-{runtime}"
            told = ["--step", name, "--bits", str(bits), "--folder", str(folder)]
            rows += measured(name, [sys.executable, __file__, *told])
        served[runtime] = json.loads((folder / f"{runtime}.json").read_text())
        written[runtime] = sum(path.stat().st_size for path in (folder / runtime).iterdir())
        shutil.rmtree(folder / runtime)
    print_rows(rows)
    print(served)
    wholes = [row for row in rows if row["stage"] == "whole"]
    claims = [Claim(f"{row['command']}: peak memory, GB", row["peak_bytes"] / 1e9, MOST_GB) for row in wholes]
    finish(__file__, claims, layers=layers, bits=bits, written_bytes=written, served=served, rows=wholes)


def step(what: str, runtime: str, folder: Path, bits: int) -> None:
    """Write the package of a runtime, or have it say one token; what that took is in a file, by the worker itself."""
    if runtime == "llamacpp":
        from planner.runtimes.llamacpp import fresh
        from planner.runtimes.llamacpp.export import write_model
    else:
        from planner.runtimes.onnxruntime import fresh  # type: ignore[no-redef]
        from planner.runtimes.onnxruntime.export import write_model  # type: ignore[assignment]
    package = folder / runtime
    if what == "run":
        found = fresh.measure(package, PROMPT_TOKENS, CONTEXT, new_tokens=1, repeats=1)
        (folder / f"{runtime}.json").write_text(
            json.dumps({"loaded_bytes": found.loaded_bytes, "peak_bytes": found.peak_bytes, "ttft_ms": found.ttft_ms})
        )
        return
    from supernet.recipe import Recipe
    from supernet.space import Subnet

    files, recipe = MadeUp(folder / "model"), Recipe(bits=(bits, TABLE_BITS))
    choices = {unit.name: recipe.choice(TABLE_BITS if unit.is_table else bits) for unit in files.spec.units}
    package.mkdir()
    write_model(files, Subnet.of(choices), CONTEXT, 1, package)


if __name__ == "__main__":
    main()
