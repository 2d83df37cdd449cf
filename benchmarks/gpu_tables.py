"""How far what is made of others' tables of GPU kernels is off: on tables that it was not shown, and on whole passes.

    python benchmarks/gpu_tables.py          judge
    python benchmarks/gpu_tables.py --fit    print the numbers that planner/runtimes/vllm/by_tables.py keeps

Packed weights: TensorRT-LLM's products of int4 and int8 weights on an A100, predicted from its bfloat16 ones there. The
three numbers of a kernel (`PackedKernel`) come from the other of the two tables, so none was fitted to what it is
judged on. Beside it stands the plain estimate, bytes over the datasheet's bandwidth. Then fp8 from bfloat16 under vLLM,
on five GPUs, the kernel's numbers from the other four; there both were measured out of the GPU's cache where it holds
the weights, so nothing is added for reading them from memory.

vLLM's own kernel of packed weights (Marlin) was timed with experts alone: the bandwidth that it reaches with int4 ones,
which is what plans take, is held to what it reaches with mxfp4 ones of another model.

Floats and attention: each size of each axis left out of its table, and predicted from its neighbours.

Whole passes: time per token of vLLM as others measured it, of Llama-3.1-70B in fp8 and Qwen3-32B in bfloat16 on 1 to 8
GPUs, which come with the tables (answers of 1024 tokens or more of up to 8 sequences, and of 8 times the prompt of up
to 64, so that other sequences' prompts take little of it); and `published_folders.csv` of an A100 and an H100, of one
sequence. What a pass takes beside its kernels is fitted to the other GPUs' passes of float and fp8 weights, what a
packed product takes to start to TensorRT-LLM's tables: no pass of packed weights was fitted to.

Needs `pip install 'bitfleet[gpu-tables]'`; reads nothing else.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from claims import Claim, finish, table
from scipy.optimize import minimize

from planner.runtimes.by_bandwidth import VALUE_BYTES
from planner.runtimes.shapes import Shape
from planner.runtimes.vllm import split
from planner.runtimes.vllm.holding import ties
from profiles.gpu_tables import experts, package
from profiles.gpu_tables.attention import BFLOAT16, Heads
from profiles.gpu_tables.lattice import Lattice
from profiles.gpu_tables.package import newest, stacked
from profiles.gpu_tables.products import Products
from profiles.gpu_tables.tables import SPREADS, GpuTables, tables_in
from supernet.spec import HEAD, ModelSpec
from supernet.ties import tied

ROWS = 64
A100_BYTES_PER_MS = 2039e6  # its datasheet's
GPUS = ("a100_sxm", "h100_sxm", "h200_sxm", "l40s", "b200_sxm", "rtx_pro_6000_server")
MARLIN_GPUS = (*GPUS[1:], "gb200", "b300_sxm", "gb300")
LEFT_OUT_ROWS = (1, 8, 64, 512, 2048)
ODD = "b200_sxm"  # a tenth of its fp8 products of 1 to 4 rows take 1.75 times what 8 rows do: nothing is fitted to it
FEW = 8  # sequences, of whole passes
SMALLEST_ANSWER, MANY_TIMES = 1024, 8  # tokens of answers; of more sequences, as many times the prompt's
PRECISIONS = {"fp8": "fp8", "": "bfloat16"}  # products of the rows of whole passes, by what they say of precision
MODELS = {
    "meta-llama/Llama-3.1-70B": Shape("70B", 80, 8192, 28672, 64, 8, 128, 128256, tied=False),
    "Qwen/Qwen3-32B": Shape("32B", 64, 5120, 25600, 64, 8, 128, 151936, tied=False),
    "Llama-3.1-8B": Shape("8B", 32, 4096, 14336, 32, 8, 128, 128256, tied=False),
    "Qwen2.5-0.5B": Shape("0.5B", 24, 896, 4864, 14, 2, 64, 151936),
    "Qwen2.5-1.5B": Shape("1.5B", 28, 1536, 8960, 12, 2, 128, 151936),
    "Qwen2.5-3B": Shape("3B", 36, 2048, 11008, 16, 2, 128, 151936),
    "Qwen2.5-7B": Shape("7B", 28, 3584, 18944, 28, 4, 128, 152064, tied=False),
    "Qwen2.5-14B": Shape("14B", 48, 5120, 13824, 40, 8, 128, 152064, tied=False),
    "Qwen2.5-32B": Shape("32B", 64, 5120, 27648, 40, 8, 128, 152064, tied=False),
}
DEVICES = {"A100 SXM 80GB": "a100_sxm", "H100 SXM 80GB": "h100_sxm"}
Array = np.ndarray


def root() -> Path:
    found = package.root()
    if found is None:
        raise SystemExit(f"the tables are not installed; {package.INSTALL}")
    return found


@cache
def measured(gpu: str, framework: str, kind: str) -> tuple[Array, Array]:
    """Points (rows, n, k) and milliseconds."""
    path = newest(root(), gpu, "gemm", framework, "gemm_perf.parquet")
    assert path is not None
    columns, _ = package.read(path, ("m", "n", "k", "latency"), {"gemm_dtype": kind})
    return stacked(columns, ("m", "n", "k")), columns["latency"]


@cache
def products(gpu: str, framework: str, kind: str = "bfloat16") -> Products:
    return Products(Lattice(*measured(gpu, framework, kind)), SPREADS)


def tables(gpu: str) -> GpuTables:
    found = tables_in(root(), gpu)
    assert found is not None and found.reduce is not None
    return found


# --- packed weights -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Products of few rows that were measured, with the parts that the model makes of them from floats."""

    points: Array
    ms: Array
    parts: Array  # (count, reading and multiplying)

    def predicted(self, numbers: Sequence[float]) -> Array:
        start, step, power = numbers
        parts = np.column_stack([self.parts, step * self.points[:, 2]])
        return start + np.linalg.norm(parts, ord=power, axis=1)

    def errors(self, predicted: Array) -> Array:
        return np.abs(predicted / self.ms - 1)


@cache
def judged(
    gpu: str, framework: str, kind: str, bits: int, speed: float = 1.0, warm: bool = False, many: bool = False
) -> Judged:
    """`speed` is how many times as fast as floats they are multiplied; `warm` where the cache may hold the weights;
    of `many` rows, or of few."""
    points, ms = measured(gpu, framework, kind)
    mine = (points[:, 0] > ROWS) == many
    points, ms, floats = points[mine], ms[mine], products(gpu, framework)
    parts = np.array([floats.packed_parts(m, n, k, n * k * bits / 8) for m, n, k in points]) / (1.0, speed)
    if warm:
        parts[:, 0] = [floats.float_ms(m, n * bits / 16, k) - floats.start_ms for m, n, k in points]
    return Judged(points, ms, parts)


def kernel_numbers(shown: Sequence[Judged]) -> Array:
    """The start, step and overlap with the least mean error."""

    def loss(numbers: Array) -> float:
        if min(numbers[:2]) < 0 or numbers[2] < 1:
            return 9.0
        return float(np.mean([one.errors(one.predicted(numbers)).mean() for one in shown]))

    starts = ((0.008, 2e-6, 2.0), (0.003, 0.0, 4.0))
    found = [minimize(loss, start, method="Nelder-Mead", options={"maxiter": 400}) for start in starts]
    return min(found, key=lambda one: one.fun).x  # type: ignore[no-any-return]


def weight_only(many: bool = False) -> dict[int, Judged]:
    return {bits: judged("a100_sxm", "trtllm", f"int{bits}_wo", bits, many=many) for bits in (4, 8)}


def packed_weights() -> dict[str, dict[str, float]]:
    """By table: the mean error, what 8 of 10 are within, the plain estimate's, and the kernel's three numbers."""
    both, prompts = weight_only(), weight_only(many=True)
    found, lines = {}, []
    for bits, mine in both.items():
        numbers = kernel_numbers([both[12 - bits]])
        errors = mine.errors(mine.predicted(numbers))
        plain = mine.errors(mine.points[:, 1] * mine.points[:, 2] * bits / 8 / A100_BYTES_PER_MS)
        alone = mine.errors(products("a100_sxm", "trtllm").start_ms + mine.parts.max(axis=1))
        many = prompts[bits].errors(prompts[bits].predicted(numbers)).mean()
        kept = dict(zip(("start_us", "step_ns", "overlap"), numbers * (1e3, 1e6, 1), strict=True))
        found[f"int{bits}"] = {
            "products": len(errors), "mean": errors.mean(), "in_8_of_10": np.quantile(errors, 0.8),
            "plain": plain.mean(), "no_numbers": alone.mean(), "many_rows": many, **kept,
        }  # fmt: skip
        by_rows = [f"{errors[mine.points[:, 0] == rows].mean():.0%}" for rows in (1, 8, 16, 32, 64)]
        beside_it = [f"{one:.0%}" for one in (many, alone.mean(), plain.mean())]
        lines.append((f"int{bits}", len(errors), f"{errors.mean():.1%}", *by_rows, *beside_it))
    rows = ("1 row", "8", "16", "32", "64", "80 to 8192")
    table(("from bfloat16", "products", "mean error", *rows, "without its numbers", "plain"), lines)
    return {name: {key: float(value) for key, value in row.items()} for name, row in found.items()}


def fp8() -> dict[str, float]:
    """By GPU, the mean error of fp8 from bfloat16."""
    every = {gpu: judged(gpu, "vllm", "fp8", 8, speed=2.0, warm=True) for gpu in GPUS if gpu != "a100_sxm"}
    found, lines = {}, []
    for gpu, mine in every.items():
        numbers = kernel_numbers([other for name, other in every.items() if name != gpu])
        errors = mine.errors(mine.predicted(numbers))
        found[gpu] = float(errors.mean())
        lines.append((gpu, len(errors), f"{errors.mean():.1%}", f"{np.quantile(errors, 0.8):.0%}"))
    table(("fp8 from bfloat16", "products", "mean error", "8 of 10 within"), lines)
    return found


def marlin() -> dict[str, dict[str, float]]:
    """By GPU, how far the bandwidth with int4 experts is from that with mxfp4 ones, and how far that of floats is."""
    found, lines = {}, []
    for gpu in MARLIN_GPUS:
        path = newest(root(), gpu, "moe", "vllm", "moe_perf.parquet")
        assert path is not None
        rates = []
        for kind, size in (("int4_wo", experts.BYTES_INT4), ("w4a16_mxfp4", experts.BYTES_MXFP4)):
            columns, _ = package.rows_of(path, experts.COLUMNS, {"moe_dtype": kind, "distribution": "balanced"})
            rate = experts.bytes_per_ms(columns, size)
            assert rate is not None
            rates.append(rate)
        floats = products(gpu, "vllm").bytes_per_ms
        found[gpu] = {
            "int4": rates[0] / 1e9, "mxfp4": rates[1] / 1e9, "floats": floats / 1e9,
            "off": abs(rates[0] / rates[1] - 1), "floats_off": abs(floats / rates[1] - 1),
        }  # fmt: skip
        lines.append((gpu, *(f"{found[gpu][name]:.2f} TB/s" for name in ("floats", "int4", "mxfp4"))))
    table(("read by", "floats", "Marlin, int4", "Marlin, mxfp4"), lines)
    return found


# --- what is between measurements ---------------------------------------------------------------------------------


def left_out(points: Array, ms: Array, axes: Sequence[int], at_most: int = 400) -> Array:
    """Errors where every inner size of an axis is predicted from a lattice without it; at most so many a size."""
    seen, errors = np.random.default_rng(1), []
    for axis in axes:
        for size in np.unique(points[:, axis])[1:-1]:
            mine = points[:, axis] == size
            others = Lattice(points[~mine], ms[~mine])
            rows = np.flatnonzero(mine)
            for i in seen.permutation(rows)[:at_most]:
                if others.covers(*points[i]):
                    errors.append(abs(others.at(*points[i]) / ms[i] - 1))
    return np.array(errors)


def floats_left_out() -> dict[str, dict[str, float]]:
    found, lines = {}, []
    for gpu in GPUS:
        points, ms = measured(gpu, "vllm", "bfloat16")
        kept = np.isin(points[:, 0], LEFT_OUT_ROWS) & (points[:, 1:] >= 512).all(axis=1)
        errors = left_out(points[kept], ms[kept], (1, 2))
        found[gpu] = {"mean": float(errors.mean()), "in_8_of_10": float(np.quantile(errors, 0.8))}
        lines.append((gpu, len(errors), f"{errors.mean():.1%}", f"{found[gpu]['in_8_of_10']:.0%}"))
    table(("bfloat16, a size left out", "products", "mean error", "8 of 10 within"), lines)
    return found


def attention_left_out() -> dict[str, float]:
    found, lines = {}, []
    seen = ("batch_size", "num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype", "window_size", "latency")
    for name, tokens in (("generation", "step"), ("context", "isl")):
        errors = []
        for gpu in GPUS:
            path = newest(root(), gpu, "attention", "vllm", f"{name}_attention_perf.parquet")
            assert path is not None
            columns, _ = package.read(path, (*seen, tokens), {"attn_dtype": BFLOAT16})
            whole = columns.get("window_size", np.zeros(len(columns["latency"]))) == 0
            mine = whole & (columns["kv_cache_dtype"] == BFLOAT16) & (columns["head_dim"] == 128)
            mine &= columns["num_key_value_heads"] == 8
            points = stacked(columns, ("batch_size", "num_heads", tokens))[mine]
            errors.append(left_out(points, columns["latency"][mine], (0, 1, 2)))
        all_of = np.concatenate(errors)
        found[name] = float(all_of.mean())
        within = f"{np.quantile(all_of, 0.8):.0%}"
        lines.append((name, len(all_of), f"{all_of.mean():.1%}", within))
    table(("attention, a size left out", "calls", "mean error", "8 of 10 within"), lines)
    return found


# --- whole passes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A measured time per token, its kernels without what packed ones take to start, and how many those are."""

    gpu: str
    source: str
    precision: str
    batch: int
    gpus: int
    ms: float
    kernels_ms: float
    packed: int

    def predicted(self, start: float, step: float) -> float:
        return self.kernels_ms + start * self.packed + step


def run_of(
    gpu: str, source: str, precision: str, spec: ModelSpec, batch: int, tokens: int, gpus: int, ms: float,
    product: Callable[[int, int], float], packed: bool,
) -> Run:  # fmt: skip
    """Of kernels alone, `product` (n, k) being one of a layer."""
    known, total, count = tables(gpu), 0.0, 0
    part = split.divided(tied(spec, ties(spec)), gpus)
    for unit in part.units:
        n, k = sum(linear.out_features for linear in unit.linears), unit.linears[0].in_features
        if not unit.is_table:
            total += product(n, k)
            count += int(packed)
        elif spec.tied or unit.role == HEAD:
            total += known.products.floats(batch, n, k).ms
    heads = Heads(part.num_heads, part.num_kv_heads, spec.head_dim)
    total += spec.num_layers * known.decode.one_token(batch, heads, tokens, BFLOAT16).ms
    if gpus > 1:
        assert known.reduce is not None
        sums = split.SUMS_OF_LAYER * spec.num_layers + 1
        total += sums * known.reduce.of(gpus, VALUE_BYTES * batch * spec.hidden_size).ms
    return Run(gpu, source, precision or "bf16", batch, gpus, ms, total, count)


def served() -> Iterator[Run]:
    """Of the runs that come with the tables."""
    with (root().parent / "silicon_sample.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            kind, batch = PRECISIONS.get(row["precision"]), int(row["batch_size"] or 0)
            if row["backend"] != "vllm" or row["mode"] != "agg" or row["model_path"] not in MODELS or kind is None:
                continue
            least = SMALLEST_ANSWER if batch <= FEW else MANY_TIMES * int(row["isl"])
            if int(row["osl"]) < least or int(row["pp_size"]) > 1:
                continue
            if "Qwen" in row["model_path"] and kind == "fp8":  # in blocks, another kernel
                continue
            mine = products(row["system"], "vllm", kind)
            tokens = int(row["isl"]) + int(row["osl"]) // 2
            yield run_of(
                row["system"], "served", row["precision"], MODELS[row["model_path"]].spec(), batch, tokens,
                int(row["tp_size"]), float(row["silicon_tpot_ms"]),
                lambda n, k, b=batch, p=mine: p.float_ms(b, n, k), False,
            )  # fmt: skip


def published() -> Iterator[Run]:
    """Of one sequence, from `published_folders.csv`."""
    with Path(__file__).with_name("published_folders.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            gpu = DEVICES.get(row["device"])
            if gpu is None or row["kind"] != "vllm":
                continue
            shape = MODELS[row["model"]]
            spec, known = shape.spec(), tables(gpu).products
            tokens = int(row["cache_bytes"]) // (4 * shape.layers * shape.kv_heads * shape.head_dim)

            def product(n: int, k: int, bits: str = row["type"][0], known: Products = known) -> float:
                if bits == "b":
                    return known.floats(1, n, k).ms
                size = n * k * (int(bits) / 8 + 2 / 128)
                return float(np.linalg.norm(known.packed_parts(1, n, k, size)))

            yield run_of(
                gpu, row["build"], row["type"], spec, 1, tokens, 1, 1e3 / float(row["tokens_per_s"]), product,
                row["type"] != "bf16",
            )  # fmt: skip


@cache
def start_ms() -> float:
    """Of a packed product: what both tables of them say, in the mean."""
    return float(np.mean([kernel_numbers([one])[0] for one in weight_only().values()]))


def beside(shown: Sequence[Run]) -> float:
    """What a pass takes beside its kernels, of what is not packed: the number with the least mean relative error."""
    shown = [run for run in shown if not run.packed and run.gpu != ODD]
    rests = [run.ms - run.kernels_ms for run in shown if run.ms > run.kernels_ms]
    return min(rests, key=lambda step: sum(abs(run.predicted(0.0, step) / run.ms - 1) for run in shown))


def whole_passes(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """By kind of run, errors with the numbers beside kernels from the other GPUs."""
    errors: dict[tuple[str, str], list[float]] = {}
    for gpu in {run.gpu for run in runs}:
        step = beside([run for run in runs if run.gpu != gpu])
        for run in runs:
            if run.gpu == gpu:
                where = f"one sequence, {run.precision}"
                if run.source == "served":
                    where = f"{'few' if run.batch <= FEW else 'up to 64'} sequences on {run.gpus}"
                errors.setdefault((gpu, where), []).append(run.predicted(start_ms(), step) / run.ms - 1)
    found, lines = {}, []
    for (gpu, where), signed in sorted(errors.items()):
        off = np.abs(signed)
        found[f"{gpu}, {where}"] = {"runs": len(off), "mean": float(off.mean()), "bias": float(np.mean(signed))}
        lines.append((gpu, where, len(off), f"{off.mean():.1%}", f"{np.mean(signed):+.1%}", f"{off.max():.0%}"))
    table(("time per token", "", "runs", "mean error", "bias", "worst"), lines)
    off = np.abs(np.concatenate([np.array(signed) for signed in errors.values()]))
    found["all"] = {"runs": len(off), "mean": float(off.mean()), "in_8_of_10": float(np.quantile(off, 0.8))}
    middle, within = np.median(off), np.quantile(off, 0.8)
    print(f"all {len(off)}: mean {off.mean():.1%}, median {middle:.1%}, 8 of 10 within {within:.0%}\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="print the numbers that vLLM's pricing keeps")
    fit = parser.parse_args().fit
    runs = [*served(), *published()]
    if fit:
        print(f"a packed product starts in {start_ms():.4f} ms, a pass takes {beside(runs):.2f} ms beside its kernels")
        return
    packed, from_floats, rates = packed_weights(), fp8(), marlin()
    floats, heads = floats_left_out(), attention_left_out()
    passes = whole_passes(runs)
    finish(
        __file__,
        [
            Claim("mean error of int4 products of at most 64 rows, from bfloat16 ones", packed["int4"]["mean"], 0.20),
            Claim("mean error of int8 products of at most 64 rows, from bfloat16 ones", packed["int8"]["mean"], 0.20),
            Claim("mean error of both with 80 to 8192 rows", max(row["many_rows"] for row in packed.values()), 0.20),
            Claim("their error over that of bytes over bandwidth",
                  max(row["mean"] / row["plain"] for row in packed.values()), 0.5),
            Claim("bandwidth of Marlin with mxfp4 experts from int4 ones, mean error of eight GPUs",
                  float(np.mean([one["off"] for one in rates.values()])), 0.30),
            Claim("that over the error with the bandwidth of floats, mean",
                  float(np.mean([one["off"] / one["floats_off"] for one in rates.values()])), 1.0),
            Claim("mean error of fp8 from bfloat16, mean of five GPUs", float(np.mean([*from_floats.values()])), 0.20),
            Claim("mean error of a float product whose size was left out, the worst GPU",
                  max(row["mean"] for row in floats.values()), 0.15),
            Claim("mean error of attention whose size was left out", max(heads.values()), 0.15),
            Claim("mean error of whole passes", passes["all"]["mean"], 0.15),
        ],
        tables=package.said(), packed=packed, fp8=from_floats, marlin=rates, floats=floats, attention=heads,
        passes=passes,
    )  # fmt: skip


if __name__ == "__main__":
    main()
