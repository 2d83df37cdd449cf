"""What the KV cache takes and loses: peak memory at the same KL, by runtime and type of cache, and the KL of each type.

    python benchmarks/kv_cache.py --text ../shared/text --supernet FOLDER [--windows 4] [--long 2]

The supernet is of the embedded default model, on the symmetric grid (`bitfleet train --grid sym`), which both runtimes
hold. ONNX Runtime's package of the uniform subnet of 4 bits, keys and values as floats, is what there was before; each
other runtime and type of cache has the smallest of a few plans whose KL from the full model, through the runtime and
with that cache, on the first windows of 512 tokens of eval.txt is no higher. Peaks are of processes that serve a prompt
of 512 tokens in a context of 4096. `--long` windows of 2048 tokens say what each type loses far into a text.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from claims import Claim, finish, table
from torch import Tensor

from planner import pipeline
from planner.costs import Costs
from planner.request import Budget, Workload
from planner.runtimes import RUNTIMES
from planner.runtimes.base import Runtime
from planner.runtimes.engine import Speaker
from profiles.catalog import load
from supernet.checkpoint import SupernetFiles, open_supernet
from supernet.loading import DEFAULT_MODEL, load_model
from supernet.space import Subnet
from supernet.text import read_windows

DEVICE = "desktop-ryzen-5600-16gb"  # any: only bytes are limited
CONTEXT, PROMPT, LENGTH, LONG = 4096, 512, 512, 2048
BEFORE = ("onnxruntime", "f32")
OTHERS = (("onnxruntime", "int8"), ("llamacpp", "f16"), ("llamacpp", "q8_0"), ("llamacpp", "q4_0"))
MOST = 0.7  # of the memory that there was before
MORE = (1.0, 1.02, 1.05, 1.1, 1.2, 1.35)  # times the weights of the uniform subnet, the smallest first
STRETCH = 128  # positions that are compared at a time


@dataclass(frozen=True)
class Row:
    runtime: str
    cache: str
    mean_bits: float
    kl: float
    peak_bytes: int
    promised_bytes: int


@dataclass(frozen=True)
class Rounding:
    """KL from the same package with its runtime's own cache."""

    runtime: str
    cache: str
    tokens: int
    kl: float
    last_quarter: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--supernet", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--long", type=int, default=2)
    given = parser.parse_args()
    files = open_supernet(given.supernet)
    full = load_model(DEFAULT_MODEL)
    short, far = (
        read_windows(str(given.text / "eval.txt"), full.tokenizer, count, length)
        for count, length in ((given.windows, LENGTH), (given.long, LONG))
    )
    with torch.no_grad():
        said = [full.model(window[None]).logits[0].log_softmax(-1) for window in short]
    del full
    uniform = files.space.uniform(files.spec, 4)
    rows: list[Row] = []
    rounding: list[Rounding] = []
    with tempfile.TemporaryDirectory() as scratch:
        for runtime, cache in (BEFORE, *OTHERS):
            rows.append(smallest(files, uniform, runtime, cache, rows[0].kl if rows else np.inf, said, short, scratch))
            print(rows[-1], flush=True)
        for runtime, cache in OTHERS:
            if RUNTIMES[runtime].caches[0].name != cache:
                rounding += rounded(files, uniform, runtime, cache, (short, far), scratch)
                print(*rounding[-2:], flush=True)
    table(
        ("runtime", "cache", "bits", "KL", "peak MB", "promised", "of before"),
        [
            (r.runtime, r.cache, f"{r.mean_bits:.2f}", f"{r.kl:.4f}", f"{r.peak_bytes / 1e6:.1f}",
             f"{r.promised_bytes / 1e6:.1f}", f"{r.peak_bytes / rows[0].peak_bytes:.2f}")
            for r in rows
        ],
    )  # fmt: skip
    table(
        ("runtime", "cache", "window", "KL of rounding", "in its last quarter"),
        [(r.runtime, r.cache, str(r.tokens), f"{r.kl:.5f}", f"{r.last_quarter:.5f}") for r in rounding],
    )
    evidence = {"rows": [asdict(r) for r in rows], "rounding": [asdict(r) for r in rounding]}
    finish(__file__, list(claims(rows)), **evidence, recipe=files.info["recipe"])


def claims(rows: Sequence[Row]) -> Iterator[Claim]:
    for one in rows[1:]:
        if one.runtime != BEFORE[0] and one.cache != "q4_0":
            what = f"peak memory at context {CONTEXT} of {one.runtime} with {one.cache} over {' '.join(BEFORE)}"
            yield Claim(f"{what}, KL no higher", one.peak_bytes / rows[0].peak_bytes, MOST)
            yield Claim(f"KL of {one.runtime} with {one.cache}, beside {' '.join(BEFORE)}", one.kl, rows[0].kl)
    for one in rows:
        yield Claim(
            f"peak of {one.runtime} with {one.cache} over its promise", one.peak_bytes / one.promised_bytes, 1.0
        )


def smallest(
    files: SupernetFiles, uniform: Subnet, name: str, cache: str, most: float, said: list[Tensor], windows: Tensor,
    scratch: str,
) -> Row:  # fmt: skip
    """The smallest of the plans whose KL is at most that; the largest where none is."""
    runtime, workload, device = RUNTIMES[name](), Workload(CONTEXT, 1, PROMPT, cache), load(DEVICE)
    bytes_of = Costs.of(runtime, files.spec, workload, device, files.model_dir).disk_bytes(uniform)
    for number, times in enumerate(MORE):
        made = pipeline.plan(
            files, runtime, device, workload, Budget(10**10, disk_bytes=round(times * bytes_of)), trials=0
        )
        subnet = uniform if number == 0 else made.subnet
        folder = written(runtime, files, subnet, workload, Path(scratch) / f"{name}-{cache}-{number}")
        engine = runtime.engine()
        assert engine is not None
        speaker = engine.speaker(folder)
        kl = float(np.mean([apart(ours, answers(speaker, w)).mean() for ours, w in zip(said, windows, strict=True)]))
        print(name, cache, f"{subnet.mean_bits(files.spec):.2f} bits, KL {kl:.4f}", flush=True)
        if kl <= most or times == MORE[-1]:
            break
    server = engine.server(folder)
    assert server is not None
    peak = server.measure(workload).peak_bytes
    promised = sum(item.bytes for item in runtime.pricing(files.spec, workload, device).memory(subnet))
    return Row(name, cache, subnet.mean_bits(files.spec), kl, peak, promised)


def rounded(
    files: SupernetFiles, subnet: Subnet, name: str, cache: str, texts: Sequence[Tensor], scratch: str
) -> Iterator[Rounding]:
    runtime, folder = RUNTIMES[name](), Path(scratch) / f"{name}-{cache}-rounding"
    written(runtime, files, subnet, Workload(CONTEXT, 1, PROMPT, cache), folder)
    engine = runtime.engine()
    assert engine is not None
    speaker = engine.speaker(folder)
    for windows in texts:
        found = torch.stack([apart(answers(speaker, window, True), answers(speaker, window)) for window in windows])
        length = found.shape[1]
        yield Rounding(name, cache, length, float(found.mean()), float(found[:, -(length // 4) :].mean()))


def written(runtime: Runtime, files: SupernetFiles, subnet: Subnet, workload: Workload, folder: Path) -> Path:
    folder.mkdir()
    runtime.packages.write(files, subnet, workload, None, folder)
    return folder


def answers(speaker: Speaker, window: Tensor, unrounded: bool = False) -> Tensor:
    """Log probabilities `(tokens, vocabulary)`."""
    found = speaker.logits(window[None].numpy().astype(np.int64), unrounded)
    return torch.from_numpy(found[0]).log_softmax(-1)


def apart(ours: Tensor, theirs: Tensor) -> Tensor:
    """KL at each position, nats."""
    parts = zip(ours.split(STRETCH), theirs.split(STRETCH), strict=True)
    return torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in parts]).double()


if __name__ == "__main__":
    main()
