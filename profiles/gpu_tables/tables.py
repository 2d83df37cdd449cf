"""All that others measured of one GPU under vLLM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from profiles.device import DeviceProfile
from profiles.gpu_tables import all_reduce, attention, experts, package
from profiles.gpu_tables.all_reduce import AllReduce
from profiles.gpu_tables.attention import Attention
from profiles.gpu_tables.lattice import Lattice
from profiles.gpu_tables.package import Source, stacked
from profiles.gpu_tables.products import Products, Spreads

FRAMEWORK = "vllm"
BFLOAT16 = "bfloat16"
# Relative half-widths: printed by `python benchmarks/gpu_tables.py` as what 8 of 10 left out are within.
SPREADS = Spreads(floats=0.12, packed=0.27)
ATTENTION_SPREAD, REDUCE_SPREAD = 0.08, 0.15


@dataclass(frozen=True)
class GpuTables:
    """`reduce` is None where adding up over several of the GPUs was not measured."""

    sources: tuple[Source, ...]
    products: Products
    decode: Attention
    prefill: Attention
    reduce: AllReduce | None

    def said(self) -> str:
        """Where the times come from, in a few words."""
        versions: dict[str, list[str]] = {}
        for source in self.sources:
            versions.setdefault(f"{source.framework} {source.version}", []).append(source.said)
        parts = ", ".join(f"{listed(kinds)} of {name}" for name, kinds in versions.items())
        return f"{parts} on {self.sources[0].gpu} ({package.said()})"


def listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def tables_of(device: DeviceProfile) -> GpuTables | None:
    """What was measured of a GPU of this model; None where nothing was, or the package is not installed."""
    system, folder = package.system_of(device), package.root()
    return None if system is None or folder is None else tables_in(folder, system)


@cache
def tables_in(folder: Path, system: str) -> GpuTables | None:
    """Of the GPU that is called `system` in a folder of tables; None where that lacks products or attention."""
    paths = [
        package.newest(folder, system, kind, FRAMEWORK, f"{name}_perf.parquet")
        for kind, name in (
            ("gemm", "gemm"), ("attention", "generation_attention"), ("attention", "context_attention"),
            ("comm", "custom_allreduce"),
        )
    ]  # fmt: skip
    gemm, one, whole, comm = paths
    if gemm is None or one is None or whole is None:
        return None
    rate, of_experts = packed_rate(folder, system)
    products, of_products = read_products(gemm, BFLOAT16, rate)
    seen = ("batch_size", "num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype", "window_size", "latency")

    def seen_by(path: Path, tokens: str) -> tuple[Attention, Source]:
        columns, source = package.read(path, (*seen, tokens), {"attn_dtype": BFLOAT16})
        return Attention(attention.lattices(columns, tokens), products.reading_ms, ATTENTION_SPREAD), source

    (decode, of_attention), (prefill, _) = seen_by(one, "step"), seen_by(whole, "isl")
    sources, reduce = [of_products, of_attention], None
    if comm is not None:
        columns, of_reduce = package.read(comm, ("message_size", "num_gpus", "latency"), {"backend": "vllm_graph"})
        reduce = AllReduce(all_reduce.lattices(columns), REDUCE_SPREAD)
        sources.append(of_reduce)
    return GpuTables((*sources, *of_experts), products, decode, prefill, reduce)


def packed_rate(folder: Path, system: str) -> tuple[float, tuple[Source, ...]]:
    """The bandwidth that packed weights reach, without an end and of no source where nobody measured it."""
    path = package.newest(folder, system, "moe", FRAMEWORK, "moe_perf.parquet")
    if path is None:
        return math.inf, ()
    columns, source = package.rows_of(path, experts.COLUMNS, {"moe_dtype": "int4_wo", "distribution": "balanced"})
    rate = experts.bytes_per_ms(columns)
    return (math.inf, ()) if rate is None else (rate, (source,))


def read_products(path: Path, kind: str, packed_bytes_per_ms: float = math.inf) -> tuple[Products, Source]:
    """Of floats, or of another `kind` of product that the file names."""
    columns, source = package.read(path, ("m", "n", "k", "latency"), {"gemm_dtype": kind})
    times = Lattice(stacked(columns, ("m", "n", "k")), columns["latency"])
    return Products(times, SPREADS, packed_bytes_per_ms), source
