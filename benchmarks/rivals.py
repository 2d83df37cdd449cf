"""What people use today, on the model, text and windows of benchmarks/quality.py: uniform bits, and every average.

    pip install "bitfleet[rivals]"
    python benchmarks/rivals.py --text ../shared/text [--tools rtn,gptq,hqq,autoround,autoscheme] [--work FOLDER]

The folder of --text holds train.txt and eval.txt. Tools: round-to-nearest, GPTQ (the project's), HQQ, and AutoRound of
50 iterations on 64 samples of 512 tokens. All are asymmetric in groups of 64.

Mixtures have averages of 2.25 to 4 code bits a weight. AutoRound has a tool for those, AutoScheme, and its rows are
tuned as the mixture that they are. The others have none, so their own layers are mixed as a supernet's are: by this
project's exact search on their Fisher sensitivities, as they are and as measured at the uniform points, and by the two
bit-widths around the average split at a depth. The best of these and of the uniform subnet below, judged on held-out
windows of train.txt, is the row. Mixtures may use 8 bits, where round-to-nearest stands for every tool: it loses 0.002.

A row's bytes are those of the linears in this project's runtime: codes, float32 scales, integer zeros in the code's
bits; HQQ's float zeros count as float32. `linear_bits` says the same a weight, with 16-bit scales beside. Embedding and
head are 8-bit round-to-nearest in groups of 64 in every row. Codes are kept in --work, and rows are written to
--out as they come: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import rival_tools as tools
import torch
from claims import Claim, finish, table, versions
from mixtures import AVERAGES, best, proposals
from rival_tools import GROUP, SAMPLES, TOKENS

from planner.runtimes.onnxruntime.storage import FLOAT_BYTES, matrices, unit_bytes, zero_bytes
from records.atomic import write_text
from records.cache import cache_dir
from supernet.build import Supernet, Weights, build
from supernet.choices import make_space
from supernet.evaluate import Quality, Reference, evaluate
from supernet.files import read_tensors, write_tensors
from supernet.loading import DEFAULT_MODEL, load_model
from supernet.model import spec_of_model
from supernet.quantize import quantize
from supernet.quantizers import RTN
from supernet.sensitivity import Table, fisher
from supernet.shelf import code_tensors
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import UnitSpec
from supernet.text import read_windows, spread_windows

UNIFORM, WIDEST = (2, 3, 4), 8
HELD_OUT, SENSITIVITY, SENSITIVITY_TOKENS = 4, 4, 256
MARGIN = 128  # tokens more in a sample for AutoRound: decoded and read again it may have fewer

Tool = Callable[[tools.Inputs, Sequence[int]], Weights]
Job = tuple[int, ...]  # bit-widths that a tool makes in one go
TOOLS: dict[str, tuple[str, Tool]] = {
    "rtn": ("round-to-nearest", tools.rtn),
    "gptq": ("GPTQ", tools.gptq),
    "hqq": ("HQQ", tools.hqq),
    "hqq-integer": ("HQQ, integer zeros", tools.hqq_integer_zeros),
    "autoround": ("AutoRound", tools.autoround),
}
ONE_BY_ONE = ("autoround",)  # the others make every bit-width in one go, and share the seconds out
MIXED = ("rtn", "gptq", "hqq-integer", "autoround")  # HQQ with float zeros never has a mixture's bytes
PACKAGES = ("auto-round", "hqq", "torch", "transformers")


def jobs_of(key: str) -> list[Job]:
    """The uniform bit-widths."""
    return [(bits,) for bits in UNIFORM] if key in ONE_BY_ONE else [UNIFORM]


@dataclass(frozen=True)
class Row:
    """`average_bits` and `mean_bits` count codes alone: what was asked for, and what it is."""

    tool: str
    mixed_by: str  # "" where every linear has the same bits
    average_bits: float
    mean_bits: float
    linear_bytes: int
    linear_bits: float  # a weight, with float32 scales and zeros
    linear_bits_16: float  # the same with 16-bit scales
    units: dict[str, int]  # how many of the layers' units have each bit-width
    seconds: float  # making the codes, and for a mixture choosing it; of a wall's clock, so other work counts too
    cpu_seconds: float  # the same of all threads together
    kl: float
    perplexity: float
    top1: float
    tokens: int


@dataclass(frozen=True)
class Seconds:
    wall: float
    cpu: float


class Clock:
    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def spent(self, share: int = 1) -> dict[str, float]:
        return {"wall": (time.perf_counter() - self.wall) / share, "cpu": (time.process_time() - self.cpu) / share}


class Setting:
    """The model, its text, and what was made before."""

    def __init__(self, source: str, text: Path, work: Path, windows: int, seed: int) -> None:
        self.work, self.seed = work, seed
        work.mkdir(parents=True, exist_ok=True)
        full = load_model(source)
        self.model, tokenizer = full.model, full.tokenizer
        self.spec = spec_of_model(self.model, source)
        eval_windows = read_windows(str(text / "eval.txt"), tokenizer, windows, TOKENS)
        drawn = spread_windows(str(text / "train.txt"), tokenizer, HELD_OUT + SAMPLES, TOKENS + MARGIN, seed)
        self.held_out_windows, training = drawn[:HELD_OUT, :TOKENS], drawn[HELD_OUT:]
        self.calibration = training[:, :TOKENS]
        self.inputs = tools.Inputs(source, self.model, self.spec, self.calibration, work / "samples.jsonl")
        tools.write_samples(self.inputs.samples, training, tokenizer)
        self.reference = Reference.of(self.model, eval_windows)

    @cached_property
    def held_out(self) -> Reference:
        return Reference.of(self.model, self.held_out_windows)

    @cached_property
    def shared(self) -> Weights:
        """Round-to-nearest at 8 bits: the table of every row, and the widest choice of every mixture."""
        return quantize(self.model, self.spec, self.space((WIDEST,)), RTN(), self.calibration)

    def space(self, bits: Sequence[int]) -> SearchSpace:
        tables = {unit.name for unit in self.spec.units if unit.is_table}
        return make_space(self.spec, bits, GROUP, grid="int").restrict(lambda u, c: u not in tables or c.bits == WIDEST)

    def supernet(self, codes: Weights) -> Supernet:
        """Every linear at every choice that `codes` has, and at 8 bits."""
        bits = sorted({choice.bits for choices in codes.values() for choice in choices} | {WIDEST})
        weights = {name: {**shared, **codes.get(name, {})} for name, shared in self.shared.items()}
        return build(self.model, self.spec, self.space(bits), weights)

    def codes(self, keys: Sequence[str], make: Callable[[], Weights]) -> list[tuple[Weights, Seconds]]:
        """Codes from the work folder and the seconds that making them took. What is missing is made in one go.

        One key is for everything that `make` gives; several are for its bit-widths, in order.
        """
        paths = [self.work / f"{key}.safetensors" for key in keys]
        if not all(path.exists() for path in paths):
            print(f"{', '.join(keys)} ...", flush=True)
            clock = Clock()
            weights = make()
            meta = clock.spent(len(keys))
            for path, part in zip(paths, by_width(weights) if len(keys) > 1 else [weights], strict=True):
                write_tensors(path, code_tensors(part), meta)
        read = [read_tensors(path) for path in paths]
        return [(tools.from_tensors(tensors), Seconds(**meta)) for tensors, meta in read]

    def uniform(self, key: str, jobs: Sequence[Job]) -> tuple[Weights, dict[int, Seconds]]:
        """A tool's codes at these uniform bit-widths, and the seconds of each."""
        _, make = TOOLS[key]
        found: Weights = {}
        seconds = {}
        for job in jobs:
            parts = self.codes([f"{key}-{bits}" for bits in job], partial(make, self.inputs, job))
            for bits, (weights, spent) in zip(job, parts, strict=True):
                seconds[bits] = spent
                for name, choices in weights.items():
                    found.setdefault(name, {}).update(choices)
        return found, seconds


def by_width(weights: Weights) -> list[Weights]:
    """The same codes by bit-width, fewest bits first."""
    choices = sorted({choice for found in weights.values() for choice in found})
    return [{name: {choice: found[choice]} for name, found in weights.items()} for choice in choices]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a Hugging Face folder; the default is the embedded one")
    parser.add_argument("--tools", default=",".join([*TOOLS, "autoscheme"]))
    parser.add_argument("--no-mixtures", action="store_true", help="uniform bits only, of all tools but AutoScheme")
    parser.add_argument("--averages", type=float, nargs="+", default=AVERAGES, help="of mixtures")
    parser.add_argument("--work", type=Path, default=cache_dir() / "rivals", help="where codes are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rivals.json")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wanted = arguments.tools.split(",")
    unknown = set(wanted) - {*TOOLS, "autoscheme"}
    if unknown:
        raise SystemExit(f"error: --tools are of {', '.join([*TOOLS, 'autoscheme'])}, got {', '.join(unknown)}")
    setting = Setting(arguments.model, arguments.text, arguments.work, arguments.windows, arguments.seed)
    rows = read_rows(arguments.out, arguments.model)
    for row in made(setting, wanted, arguments, rows):
        rows = [old for old in rows if key_of(old) != key_of(row)] + [row]
        rows.sort(key=lambda r: (r.average_bits, r.tool, r.mixed_by))
        write(arguments.out, arguments.model, rows)
        print(f"{row.tool}, {row.average_bits:g} bits{', mixed' if row.mixed_by else ''}: KL {row.kl:.4f}", flush=True)
    print_rows(rows)
    finish(__file__, claims(rows), **evidence(arguments.model, rows))


def made(setting: Setting, wanted: Sequence[str], arguments: Any, old: Sequence[Row]) -> Iterator[Row]:
    have = {key_of(row) for row in old}
    for key in [key for key in TOOLS if key in wanted]:
        for job in jobs_of(key):
            if any((TOOLS[key][0], "", float(bits)) not in have for bits in job):
                yield from uniform_rows(setting, key, job)
    for key in [key for key in MIXED if key in wanted and not arguments.no_mixtures]:
        missing = [a for a in arguments.averages if (TOOLS[key][0], EXACT, a) not in have]
        if missing:
            yield from mixed_rows(setting, key, missing)
    for average in arguments.averages if "autoscheme" in wanted else ():
        if ("AutoRound", AUTOSCHEME, average) not in have:
            yield autoscheme_row(setting, average)


EXACT, AUTOSCHEME = "exact search", "AutoScheme"


def uniform_rows(setting: Setting, key: str, job: Job) -> Iterator[Row]:
    codes, seconds = setting.uniform(key, [job])
    supernet = setting.supernet(codes)
    subnets = [supernet.space.uniform(setting.spec, bits) for bits in job]
    found = evaluate(supernet, subnets, setting.reference)
    for bits, subnet, quality in zip(job, subnets, found, strict=True):
        yield row_of(setting, supernet, TOOLS[key][0], "", float(bits), subnet, seconds[bits], quality)


def mixed_rows(setting: Setting, key: str, averages: Sequence[float]) -> Iterator[Row]:
    codes, seconds = setting.uniform(key, jobs_of(key))
    clock = Clock()
    supernet = setting.supernet(codes)
    plans = best(supernet, candidates(setting, supernet, averages), setting.held_out)
    parts = [*seconds.values(), Seconds(**clock.spent())]
    spent = Seconds(sum(part.wall for part in parts), sum(part.cpu for part in parts))
    chosen = list(dict.fromkeys(plans.values()))
    found = dict(zip(chosen, evaluate(supernet, chosen, setting.reference), strict=True))
    for average, subnet in plans.items():
        yield row_of(setting, supernet, TOOLS[key][0], EXACT, average, subnet, spent, found[subnet])


def candidates(setting: Setting, supernet: Supernet, averages: Sequence[float]) -> dict[float, list[Subnet]]:
    """What each average may become, by two tables of sensitivities."""
    spec, space = setting.spec, supernet.space
    units = [unit for unit in spec.units if not unit.is_table]
    windows = setting.calibration[:SENSITIVITY, :SENSITIVITY_TOKENS]
    plain = fisher(setting.model, supernet, units, windows, setting.seed)
    for unit in spec.units:
        plain.setdefault(unit.name, dict.fromkeys(space[unit.name], 0.0))
    tables = (plain, scaled(setting, supernet, units, plain))
    return {a: [subnet for losses in tables for subnet in proposals(spec, space, losses, a)] for a in averages}


def scaled(setting: Setting, supernet: Supernet, units: Sequence[UnitSpec], plain: Table) -> Table:
    """Each bit-width's losses times one number, so that they add up to what its uniform subnet loses."""
    uniform = [supernet.space.uniform(setting.spec, bits) for bits in supernet.space.bits(setting.spec)]
    found = {name: dict(losses) for name, losses in plain.items()}
    for subnet, quality in zip(uniform, evaluate(supernet, uniform, setting.held_out), strict=True):
        total = sum(plain[unit.name][subnet[unit.name]] for unit in units)
        for unit in units:
            found[unit.name][subnet[unit.name]] *= quality.kl / max(total, 1e-30)
    return found


def autoscheme_row(setting: Setting, average: float) -> Row:
    make = partial(tools.autoscheme, setting.inputs, average, (*UNIFORM, WIDEST))
    ((codes, seconds),) = setting.codes([f"autoscheme-{average:g}"], make)
    supernet = autoscheme_supernet(setting, codes)
    subnet = Subnet.of({unit.name: only_choice(setting, codes, unit) for unit in setting.spec.units})
    (quality,) = evaluate(supernet, [subnet], setting.reference)
    return row_of(setting, supernet, "AutoRound", AUTOSCHEME, average, subnet, seconds, quality)


def autoscheme_supernet(setting: Setting, codes: Weights) -> Supernet:
    """Each linear at the one choice that AutoScheme gave it; tables as in every row."""
    weights = {name: codes.get(name, shared) for name, shared in setting.shared.items()}
    space = SearchSpace.of({u.name: (only_choice(setting, codes, u),) for u in setting.spec.units})
    return build(setting.model, setting.spec, space, weights)


def only_choice(setting: Setting, codes: Weights, unit: UnitSpec) -> Choice:
    if unit.is_table:
        return Choice(WIDEST, GROUP)
    choices = {choice for linear in unit.linears for choice in codes[linear.name]}
    if len(choices) > 1:
        raise ValueError(f"fused linears must share a choice, {unit.name} has {', '.join(map(str, choices))}")
    return choices.pop()


def row_of(
    setting: Setting, supernet: Supernet, tool: str, mixed_by: str, average: float, subnet: Subnet, seconds: Seconds,
    quality: Quality,
) -> Row:  # fmt: skip
    units = [unit for unit in setting.spec.units if not unit.is_table]
    sizes = [stored_bytes(supernet, unit, subnet[unit.name]) for unit in units]
    size, size_16 = (sum(column) for column in zip(*sizes, strict=True))
    weights = setting.spec.linear_weights
    counts = Counter(subnet[unit.name].bits for unit in units)
    return Row(
        tool, mixed_by, average, subnet.mean_bits(setting.spec), size, 8 * size / weights,
        8 * size_16 / weights, {str(bits): counts[bits] for bits in sorted(counts)},
        round(seconds.wall, 1), round(seconds.cpu, 1), **figures(quality),
    )  # fmt: skip


def figures(quality: Quality) -> dict[str, Any]:
    """What a row keeps of a quality."""
    return {name: getattr(quality, name) for name in ("kl", "perplexity", "top1", "tokens")}


def stored_bytes(supernet: Supernet, unit: UnitSpec, choice: Choice) -> tuple[int, int]:
    """Bytes with floats of 32 bits, as this project's runtime has them, and with floats of 16 bits."""
    size, floats = unit_bytes(unit, choice), unit.weights // choice.group_size
    if any(supernet.matrices[lin.name].stored(choice).zero.dtype != torch.uint8 for lin in unit.linears):
        size += floats * FLOAT_BYTES - sum(zero_bytes(*shape, choice) for shape in matrices(unit))
        floats *= 2
    return size, size - floats * FLOAT_BYTES // 2


Key = tuple[str, str, float]


def key_of(row: Row) -> Key:
    return row.tool, row.mixed_by, row.average_bits


def read_rows(path: Path, model: str) -> list[Row]:
    """Rows of an earlier run with the same model."""
    if not path.exists():
        return []
    data = json.loads(path.read_text())
    return [Row(**row) for row in data["rows"]] if data["model"] == Path(model).name else []


def write(path: Path, model: str, rows: Sequence[Row]) -> None:
    record = {"script": Path(__file__).name, **evidence(model, rows)}
    write_text(path, json.dumps(record, indent=1) + "\n")


def evidence(model: str, rows: Sequence[Row]) -> dict[str, Any]:
    tuning = {"iterations": tools.ITERATIONS, "samples": SAMPLES, "tokens": TOKENS, "group_size": GROUP}
    found = {"model": Path(model).name, "tuning": tuning, "tool_versions": versions(PACKAGES)}
    return found | {"threads": torch.get_num_threads(), "rows": [vars(row) for row in rows]}


def print_rows(rows: Sequence[Row]) -> None:
    cells = [
        (
            f"{row.tool}{', ' + row.mixed_by if row.mixed_by else ''}, {row.average_bits:g}", f"{row.mean_bits:.3f}",
            f"{row.linear_bits:.2f}", f"{row.linear_bytes / 1e6:.1f}", f"{row.kl:.4f}", f"{row.perplexity:.1f}",
            f"{row.top1:.3f}", f"{row.cpu_seconds:.0f}",
        )
        for row in rows
    ]  # fmt: skip
    table(("", "code bits", "with scales", "MB of linears", "KL", "perplexity", "top-1", "CPU seconds"), cells)


def claims(rows: Sequence[Row]) -> list[Claim]:
    """That the rivals got what they were promised: an average kept, and mixtures that win over uniform bits below."""
    uniform = {(row.tool, row.average_bits): row.kl for row in rows if not row.mixed_by}
    mixed = [row for row in rows if row.mixed_by]
    found = []
    if mixed:
        over = max(row.mean_bits - row.average_bits for row in mixed)
        found.append(Claim("code bits of a mixture above its average, most", over, 0.0))
    for row in mixed:
        below = uniform.get((row.tool, float(int(row.average_bits))))
        if row.mixed_by == EXACT and below is not None and len(row.units) > 1:  # else it is that subnet itself
            name = f"{row.tool} mixed to {row.average_bits:g} bits: KL / uniform at {int(row.average_bits)} bits"
            found.append(Claim(name, row.kl / below, 1.0))
    return found


if __name__ == "__main__":
    main()
