"""What llama.cpp's own files of a model lose: its types with an importance matrix, and tables as users set them.

    npm install --prefix ~/.cache/bitfleet @node-llama-cpp/linux-x64@3.22.1
    python benchmarks/gguf_rivals.py --text ../shared/text [--model FOLDER] [--own TYPE[:EMBEDDING[:HEAD]] ...]

The importance matrix is of 64 windows of 512 tokens from all over train.txt. A file is read by the llama.cpp that
bitfleet runs packages with, and its KL is per token from the full model on the first 16 windows of 512 tokens of
eval.txt. This build chooses no types by itself beyond its presets: `llama_model_quantize` has no wanted size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from claims import Claim, finish, table
from gguf_losses import Loss, loss_of
from gguf_own import IMPORTANCE_TOKENS, IMPORTANCE_WINDOWS, PACKAGE, VERSION, Own, Quantizer, quantizer_library

from planner.runtimes.llamacpp.serving import LIBRARY, WEIGHTS
from planner.runtimes.llamacpp.serving import VERSION as RUN_BY
from supernet.loading import DEFAULT_MODEL, Loaded, load_model, model_name
from supernet.model import spec_of_model
from supernet.reference import Reference
from supernet.text import read_windows, spread_windows

EVAL_TOKENS = 512
OWN = ("Q2_0", "IQ4_NL:Q4_0", "IQ2_M", "IQ3_M", "Q4_0", "Q3_K_M", "Q4_K_M:Q5_0", "Q4_K_M")
# Bytes and KL of SmolLM2's files, made and read by another build of llama.cpp with its own llama-imatrix.
KNOWN = {
    "IQ2_M": (85.6e6, 0.342), "IQ3_M": (90.2e6, 0.139), "Q4_0": (91.9e6, 0.190), "Q3_K_M": (94e6, 0.093),
    "Q4_K_M": (105.5e6, 0.033),
}  # fmt: skip
AS_GOOD = 1.1  # times the known KL: a rival must not be weaker here


@dataclass(frozen=True)
class Made:
    """A file of llama.cpp's own, its bytes and what it loses; `seconds` to make it."""

    name: str
    bytes: int
    seconds: float
    loss: Loss


@dataclass(frozen=True)
class Scene:
    """What files are made of, and what they are compared with."""

    quantizer: Quantizer | Path
    reference: Reference

    @classmethod
    def of(
        cls, full: Loaded, given: argparse.Namespace, library: Path, folder: Path, made: Path | None = None
    ) -> Scene:
        """Files of the full model go into the existing `folder`; `made` holds files that were made already."""
        text, tokenizer = given.text, full.tokenizer
        windows = read_windows(str(text / "eval.txt"), tokenizer, given.windows, EVAL_TOKENS)
        reference = Reference.of(full.model, windows)
        if made is not None:
            return cls(made, reference)
        spec = spec_of_model(full.model, model_name(given.model))
        looked_at = spread_windows(str(text / "train.txt"), tokenizer, given.importance, IMPORTANCE_TOKENS, seed=0)
        return cls(Quantizer.of(library, full, spec, looked_at, folder), reference)

    def made(self, own: Own, package: Path) -> Made:
        """The file in the new folder `package`, and what it loses."""
        start = time.perf_counter()
        if isinstance(self.quantizer, Path):
            package = self.quantizer / own.folder
        else:
            self.quantizer.make(own, package, EVAL_TOKENS)
        seconds = time.perf_counter() - start
        made = Made(own.name, (package / WEIGHTS).stat().st_size, seconds, loss_of(package, self.reference))
        print(f"{made.name}: {made.bytes / 1e6:.1f} MB, KL {made.loss.kl:.4f}", flush=True)
        return made


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--model", default=DEFAULT_MODEL, help="the full model; the embedded one if not given")
    parser.add_argument("--quantizer", type=Path, help="libllama that quantizes; the installed one if not given")
    parser.add_argument("--windows", type=int, default=16, help="of eval.txt")
    parser.add_argument("--importance", type=int, default=IMPORTANCE_WINDOWS, help="windows of train.txt")
    parser.add_argument("--keep", type=Path, help="write the files into this new folder")


@contextmanager
def scene_in(given: argparse.Namespace, made: Path | None = None) -> Iterator[tuple[Scene, Path]]:
    """The scene of the model, which is not kept, and the new folder that files go into; `made` as in `Scene.of`."""
    library = quantizer_library(given.quantizer)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch) / "files"
        folder.mkdir(parents=True)
        full = load_model(given.model)
        scene = Scene.of(full, given, library, folder, made)
        del full
        yield scene, folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--own", nargs="+", default=list(OWN), help="files to make")
    given = parser.parse_args()
    wanted = [Own.parse(text) for text in given.own]
    with scene_in(given) as (scene, folder):
        found = [scene.made(own, folder / own.folder) for own in wanted]
    print_rows(found)
    known = given.model == DEFAULT_MODEL and (given.windows, given.importance) == (16, IMPORTANCE_WINDOWS)
    finish(
        __file__, list(claims(found)) if known else [], model=model_name(given.model),
        files=[asdict(made) for made in found], quantizer=f"{PACKAGE} {VERSION}", run_by=f"{LIBRARY} {RUN_BY}",
        windows=given.windows,
        importance_tokens=given.importance * IMPORTANCE_TOKENS,
    )  # fmt: skip


def print_rows(found: Sequence[Made]) -> None:
    cells = [(m.name, f"{m.bytes / 1e6:.1f}", f"{m.loss.kl:.4f}", f"{m.loss.top1:.3f}", f"{m.seconds:.0f}")
             for m in sorted(found, key=lambda made: made.bytes)]  # fmt: skip
    table(("LLAMA.CPP'S OWN", "MB", "KL", "TOP-1", "SECONDS"), cells)


def claims(found: Sequence[Made]) -> Iterator[Claim]:
    """That these are no weaker rivals than the known files."""
    for made in found:
        if made.name in KNOWN:
            size, kl = KNOWN[made.name]
            yield Claim(f"{made.name}: bytes / those of the known file", made.bytes / size, 1.01)
            yield Claim(f"{made.name}: KL / that of the known file", made.loss.kl / kl, AS_GOOD)


if __name__ == "__main__":
    main()
