"""What a few minutes of training win over quantizing alone, at the same bits, groups and bytes.

    python benchmarks/quality.py --text ../shared/text --minutes 4

The folder of --text holds train.txt and eval.txt. The model is the embedded default, SmolLM2-135M-Instruct; quality is
KL divergence per token from the full model on the first 16 windows of 512 tokens of eval.txt. Linears are on the
integer grid in groups of 64, embedding and head at 8 bits in every row, so rows of one bit-width have the same bytes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from claims import Claim, finish, table

from supernet.build import build, make_space, quantize
from supernet.checkpoint import SupernetFiles
from supernet.create import CALIBRATION, Recipe, create
from supernet.evaluate import Quality, Reference, evaluate
from supernet.model import DEFAULT_MODEL, load_model, spec_of_model
from supernet.quantizers import GPTQ, RTN
from supernet.text import read_windows, spread_windows

BITS = (2, 3, 4)
PUBLISHED = {2: 4.51, 3: 1.23, 4: 0.301}  # GPTQ with groups of 64 on this text, embeddings in float32
SHARE = 0.5  # of GPTQ's KL that may be left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of a supernet, as in `make demo`")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-data", action="store_true", help="also train on text sampled from the model")
    arguments = parser.parse_args()
    model, tokenizer = load_model(DEFAULT_MODEL)
    reference = Reference.of(model, read_windows(str(arguments.text / "eval.txt"), tokenizer, arguments.windows, 512))
    train = str(arguments.text / "train.txt")
    rows = baselines(model, tokenizer, train, reference, arguments.seed)
    rows |= supernet_rows("supernet, trained on the text", train, reference, arguments)
    if arguments.without_data:
        rows |= supernet_rows("supernet, trained without data", None, reference, arguments)
    print_rows(rows)
    finish(__file__, list(claims(rows)), rows=[record(key, value) for key, value in rows.items()])


Key = tuple[str, int]
Row = tuple[Quality, float]  # and the seconds that making it took


def baselines(model: Any, tokenizer: Any, train: str, reference: Reference, seed: int) -> dict[Key, Row]:
    spec = spec_of_model(model, DEFAULT_MODEL)
    space = make_space(spec, BITS, 64)
    windows = spread_windows(train, tokenizer, CALIBRATION, 256, seed)
    rows: dict[Key, Row] = {}
    methods = (("round-to-nearest", RTN()), ("GPTQ", GPTQ(clip=False)), ("GPTQ, clipped ranges", GPTQ()))
    for name, quantizer in methods:
        started = time.perf_counter()
        weights = quantize(model, spec, space, quantizer, windows)
        seconds = time.perf_counter() - started
        found = evaluate(build(model, spec, space, weights), [space.uniform(spec, b) for b in BITS], reference)
        rows |= {(name, bits): (quality, seconds) for bits, quality in zip(BITS, found, strict=True)}
    return rows


def supernet_rows(name: str, data: str | None, reference: Reference, arguments: argparse.Namespace) -> dict[Key, Row]:
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        recipe = Recipe(data=data, minutes=arguments.minutes, seed=arguments.seed)
        files = create(DEFAULT_MODEL, Path(scratch) / "supernet", recipe)
        seconds = time.perf_counter() - started
        return judged(name, files, reference, seconds)


def judged(name: str, files: SupernetFiles, reference: Reference, seconds: float) -> dict[Key, Row]:
    """Its uniform subnets as they are used, and the same without their adapters."""
    supernet = files.load()
    subnets = [files.space.uniform(files.spec, bits) for bits in BITS]
    trained = evaluate(supernet, subnets, reference)
    kept = {bits for bits, subnet in zip(BITS, subnets, strict=True) if supernet.adapters(subnet)}
    for matrix in supernet.matrices.values():
        matrix.adapters = torch.nn.ModuleDict()
    frozen = evaluate(supernet, subnets, reference)
    rows = {(name, bits): (quality, seconds) for bits, quality in zip(BITS, trained, strict=True)}
    pairs = zip(BITS, frozen, strict=True)
    return rows | {(f"{name}: its codes, no adapter", bits): (q, seconds) for bits, q in pairs if bits in kept}


def claims(rows: dict[Key, Row]) -> Any:
    for name, bits in rows:
        if not name.startswith("supernet"):
            continue
        kl = rows[name, bits][0].kl
        bare = rows.get((f"{name}: its codes, no adapter", bits))
        if bare is not None:
            yield Claim(f"{name}, {bits} bits: KL with its adapters / without", kl / bare[0].kl, 1.0)
        if bits < 4 and ":" not in name:
            gptq = min(rows["GPTQ", bits][0].kl, PUBLISHED[bits])
            yield Claim(f"{name}, {bits} bits: KL / GPTQ's KL at the same bytes", kl / gptq, SHARE)


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
