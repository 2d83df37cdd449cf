"""Tables of a GPU that obeys a few formulas, in files as the package has them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START_MS, BYTES_PER_MS, OPS_PER_MS = 0.002, 3e9, 4e11
PACKED_BYTES_PER_MS = 2e9
ROWS = (1, 4, 16, 64, 256, 1024, 4096)
SIZES = (256, 1024, 4096, 16384, 65536)
HEADS = {1: (1, 4, 8), 2: (2, 8, 16), 8: (8, 32, 64)}
TOKENS = (1, 16, 256, 4096, 65536)
BATCHES = (1, 8, 64)


def experts_bytes(tokens: int, parts: int) -> float:
    """Of half of 256 experts, 8 a token, with 4 bits in groups of 32."""
    return 3 * 4096 * (2048 / parts) * min(128, tokens * 8 / 2) * 0.5625


def float_ms(rows: float, n: float, k: float, width: float = 2) -> float:
    return START_MS + max(width * n * k / BYTES_PER_MS, 2 * rows * n * k / OPS_PER_MS)


def cached_ms(batch: float, keys: int, values: int, tokens: float, width: int) -> float:
    return 0.01 + 2 * batch * tokens * keys * values * width / BYTES_PER_MS


def prompt_ms(batch: float, queries: int, values: int, tokens: float) -> float:
    return 0.01 + 2 * batch * queries * values * tokens**2 / OPS_PER_MS


def reduce_ms(gpus: int, size: float) -> float:
    return 0.004 + size * gpus / 1e9


def write(folder: Path, system: str = "h100_sxm", version: str = "0.24.0", gpu: str = "NVIDIA H100 80GB HBM3") -> Path:
    """A folder of tables, as `package.root()` gives it."""

    def save(kind: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        import pyarrow
        import pyarrow.parquet

        path = folder / system / kind / "vllm" / version / f"{name}_perf.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        said = {"device": gpu, "version": version}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**row, **said} for row in rows]), path)

    save("gemm", "gemm", [
        {"gemm_dtype": kind, "m": m, "n": n, "k": k, "latency": float_ms(m, n, k, width)}
        for kind, width in (("bfloat16", 2), ("fp8", 1)) for m, n, k in itertools.product(ROWS, SIZES, SIZES)
    ])  # fmt: skip
    seen = [
        {"attn_dtype": "bfloat16", "batch_size": batch, "num_heads": queries, "num_key_value_heads": keys,
         "head_dim": values, "kv_cache_dtype": cache, "window_size": window}
        for keys, all_queries in HEADS.items() for queries in all_queries for batch in BATCHES for values in (64, 128)
        for cache in ("bfloat16", "fp8") for window in (0, 128)
    ]  # fmt: skip
    one, whole = [], []
    for row, tokens in itertools.product(seen, TOKENS):
        window = row["window_size"] or tokens
        width = 2 if row["kv_cache_dtype"] == "bfloat16" else 1
        shape = row["batch_size"], row["num_key_value_heads"], row["head_dim"]
        ms = cached_ms(*shape, min(tokens, window), width)
        one.append({**row, "isl": 1, "step": tokens - 1, "latency": ms})
        ms = prompt_ms(row["batch_size"], row["num_heads"], row["head_dim"], tokens) / (1 if window == tokens else 7)
        whole.append({**row, "isl": tokens, "step": 0, "latency": ms})
    save("attention", "generation_attention", one)
    save("attention", "context_attention", whole)
    save("comm", "custom_allreduce", [
        {"num_gpus": gpus, "message_size": size, "backend": backend, "latency": reduce_ms(gpus, size) * slower}
        for gpus in (2, 4, 8) for size in (128, 4096, 131072, 4194304)
        for backend, slower in (("vllm_graph", 1), ("vllm_eager", 5))
    ])  # fmt: skip
    save("moe", "moe", [
        {"moe_dtype": kind, "distribution": "balanced", "kernel_source": kernel, "num_tokens": tokens,
         "hidden_size": 4096, "inter_size": 2048, "topk": 8, "num_experts": 256, "moe_tp_size": parts, "moe_ep_size": 2,
         "latency": 0.04 + experts_bytes(tokens, parts) / (PACKED_BYTES_PER_MS if kernel == "x_marlin" else 1e8)}
        for tokens in (1, 4, 8, 16, 24, 32, 64) for parts in (1, 2)
        for kind, kernel in (("int4_wo", "x_marlin"), ("int4_wo", "other"), ("fp8", "x_marlin"))
    ])  # fmt: skip
    return folder
