"""What a few minutes of training win over quantizing alone, at the same bits, groups and bytes.

    python benchmarks/quality.py --text ../shared/text --minutes 4
    python benchmarks/quality.py --text ../shared/text --full            # an hour or two on 2 cores
    python benchmarks/quality.py --text ../shared/text --full --supernet FOLDER    # one that was trained before
    python benchmarks/quality.py --text ../shared/text --full --block-steps 48 --steps 90    # another full training
    python benchmarks/quality.py --text ../shared/text --full --grid sym    # full training of another grid

The folder of --text holds train.txt and eval.txt. The model is the embedded default, SmolLM2-135M-Instruct; quality is
KL divergence per token from the full model on the first 16 windows of 512 tokens of eval.txt. Linears are in the usual
groups of their grid (64 on the integer grid), embedding and head at 8 bits in every row, so rows of one bit-width have
the same bytes. What others reach in their own time is in benchmarks/rivals.py; full training is held to fixed numbers.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from claims import Claim, finish, table
from training import start_of

from supernet.build import build
from supernet.checkpoint import START, SupernetFiles, open_supernet
from supernet.choices import make_space
from supernet.create import create
from supernet.evaluate import Quality, Reference, evaluate
from supernet.loading import DEFAULT_MODEL, load_model
from supernet.model import spec_of_model
from supernet.quantize import quantize
from supernet.quantizers import GPTQ, RTN
from supernet.recipe import Recipe
from supernet.stages.amounts import CALIBRATION
from supernet.text import read_windows, spread_windows

BITS = (2, 3, 4)
PUBLISHED = {2: 4.51, 3: 1.23, 4: 0.301}  # GPTQ with groups of 64 on this text, embeddings in float32
SHARE = 0.5  # of GPTQ's KL that may be left
FULL = {2: 0.7, 3: 0.20, 4: 0.08}  # what full training is to reach
FULL_SECONDS = 3600
FULL_RECIPE = {"block_steps": 128, "steps": 430}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of a supernet, as in `make demo`")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="full training instead of a demo's")
    parser.add_argument("--block-steps", type=int, default=FULL_RECIPE["block_steps"], help="of --full")
    parser.add_argument("--steps", type=int, default=FULL_RECIPE["steps"], help="of --full")
    parser.add_argument("--sampler", default="auto", help="of --full")
    parser.add_argument("--grid", default="int", help="of the supernets")
    parser.add_argument("--supernet", type=Path, help="judge this finished supernet, trained on the text")
    parser.add_argument("--keep", type=Path, help="write the supernet trained on the text here")
    parser.add_argument("--without-data", action="store_true", help="also train on text sampled from the model")
    arguments = parser.parse_args()
    full = load_model(DEFAULT_MODEL)
    model, tokenizer = full.model, full.tokenizer
    reference = Reference.of(model, read_windows(str(arguments.text / "eval.txt"), tokenizer, arguments.windows, 512))
    train = str(arguments.text / "train.txt")
    rows = {} if arguments.full else baselines(model, tokenizer, train, reference, arguments.seed)
    verdicts = list(supernet_claims("trained on the text", train, rows, reference, arguments))
    if arguments.without_data:
        verdicts += supernet_claims("trained without data", None, rows, reference, arguments)
    print_rows(rows)
    finish(__file__, verdicts, rows=[record(key, value) for key, value in rows.items()])


Key = tuple[str, int]
Row = tuple[Quality, float]  # and the seconds that making it took


def baselines(model: Any, tokenizer: Any, train: str, reference: Reference, seed: int) -> dict[Key, Row]:
    spec = spec_of_model(model, DEFAULT_MODEL)
    space = make_space(spec, BITS, 64, grid="int")
    windows = spread_windows(train, tokenizer, CALIBRATION, 256, seed)
    rows: dict[Key, Row] = {}
    methods = (("round-to-nearest", RTN()), ("GPTQ", GPTQ(clip=False, fisher=False)), ("our GPTQ", GPTQ()))
    for name, quantizer in methods:
        started = time.perf_counter()
        weights = quantize(model, spec, space, quantizer, windows)
        seconds = time.perf_counter() - started
        found = evaluate(build(model, spec, space, weights), [space.uniform(spec, b) for b in BITS], reference)
        rows |= {(name, bits): (quality, seconds) for bits, quality in zip(BITS, found, strict=True)}
    return rows


def supernet_claims(
    name: str, data: str | None, rows: dict[Key, Row], reference: Reference, arguments: argparse.Namespace
) -> Iterator[Claim]:
    """Adds the rows of a supernet, trained here or before, and says what is claimed of them."""
    with tempfile.TemporaryDirectory() as scratch:
        keep = arguments.keep if data is not None else None
        files, seconds = trained(keep or Path(scratch) / "supernet", data, arguments)
        found = evaluate(files.load(), [files.space.uniform(files.spec, bits) for bits in BITS], reference)
        rows |= {(name, bits): (quality, seconds) for bits, quality in zip(BITS, found, strict=True)}
        yield from trial_claims(name, files)
    for bits, quality in zip(BITS, found, strict=True):
        if arguments.full:
            yield Claim(f"{name}, {bits} bits: KL after full training", quality.kl, FULL[bits])
        elif bits < 4:
            gptq = min(rows["GPTQ", bits][0].kl, PUBLISHED[bits])
            yield Claim(f"{name}, {bits} bits: KL / GPTQ's KL at the same bytes", quality.kl / gptq, SHARE)
    if arguments.full and seconds:
        yield Claim(f"{name}: seconds of full training, preparation included", seconds, FULL_SECONDS)


def trained(out: Path, data: str | None, arguments: argparse.Namespace) -> tuple[SupernetFiles, float]:
    """A finished supernet, and the seconds that making it took (0 where it was made before)."""
    if arguments.supernet is not None:
        return open_supernet(arguments.supernet), 0.0
    full = {name: getattr(arguments, name) for name in ("block_steps", "steps", "sampler")}
    options = full if arguments.full else {"minutes": arguments.minutes}
    recipe = Recipe(data=data, seed=arguments.seed, grid=arguments.grid, **options)
    started = time.perf_counter()
    files = create(DEFAULT_MODEL, out, recipe, progress=partial(keep_start, out))
    return files, time.perf_counter() - started


def keep_start(out: Path, what: str, done: int, total: int) -> None:
    """Keeps the codes of before the first step, for separate.py: a finished supernet does not have them."""
    if what.startswith("train") and done == 1:
        shutil.copyfile(out / START, start_of(out))


def trial_claims(name: str, files: SupernetFiles) -> Iterator[Claim]:
    """Adapters that were kept won on text of another kind than they were trained on."""
    for bits, kl in files.info["trial"].items():
        if bits in files.info["adapted_bits"]:
            claim = f"{name}, {bits} bits: KL with its adapters / without, on text of another kind"
            yield Claim(claim, kl["kept"] / kl["without"], 1.0)


def print_rows(rows: dict[Key, Row]) -> None:
    cells = [
        (f"{name}, {bits} bits", f"{q.kl:.4f}", f"{q.perplexity:.1f}", f"{q.top1:.3f}", f"{seconds:.0f}")
        for (name, bits), (q, seconds) in sorted(rows.items(), key=lambda item: item[0][1])
    ]
    table(("", "KL", "perplexity", "top-1", "seconds"), cells)


def record(key: Key, row: Row) -> dict[str, Any]:
    return {"name": key[0], "bits": key[1], "seconds": round(row[1]), **row[0].to_json()}


if __name__ == "__main__":
    main()
