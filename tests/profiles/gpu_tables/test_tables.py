"""A GPU that obeys formulas is found to obey them, from files as the package has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from profiles.catalog import load
from profiles.gpu_tables import experts, package
from profiles.gpu_tables.attention import BFLOAT16, FP8, Attention, Heads
from profiles.gpu_tables.lattice import Lattice
from profiles.gpu_tables.products import MODELLED, PackedKernel, Products, Spreads, tiled
from profiles.gpu_tables.tables import GpuTables, tables_in, tables_of
from profiles.kernels import INTERPOLATED
from records.errors import InputError
from tests.profiles.gpu_tables import made_up
from tests.profiles.gpu_tables.made_up import (
    BYTES_PER_MS,
    OPS_PER_MS,
    PACKED_BYTES_PER_MS,
    START_MS,
    cached_ms,
    float_ms,
)

pytest.importorskip("pyarrow")
KERNEL = PackedKernel(start_ms=0.009, step_ms=0.0, overlap=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.write(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def gpu(folder: Path) -> GpuTables:
    found = tables_in(folder, "h100_sxm")
    assert found is not None
    return found


def test_a_device_has_the_tables_of_its_model_and_says_where_they_come_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "root", lambda: folder)
    found = tables_of(load("h100-sxm-80gb"))
    assert found is not None and found is tables_in(folder, "h100_sxm")
    assert found.said().startswith(
        "products, attention, sums and experts of vllm 0.24.0 on NVIDIA H100 80GB HBM3 (aiconf"
    )
    assert tables_of(load("h200-sxm-141gb")) is None  # not in this folder
    assert tables_of(load("l4-24gb")) is None
    monkeypatch.setattr(package, "root", lambda: None)
    assert tables_of(load("h100-sxm-80gb")) is None


def test_products_of_floats_are_looked_up(gpu: GpuTables) -> None:
    found = gpu.products.floats(16, 4096, 16384)
    assert (found.ms, found.basis) == (pytest.approx(float_ms(16, 4096, 16384), rel=0.01), INTERPOLATED)
    assert gpu.products.floats(1, 28672, 8192).ms == pytest.approx(float_ms(1, 28672, 8192), rel=0.03)
    beyond = gpu.products.floats(1, 2 * 65536, 4096)
    assert (beyond.ms, beyond.basis) == (pytest.approx(float_ms(1, 2 * 65536, 4096), rel=0.02), MODELLED)
    assert gpu.products.bytes_per_ms == pytest.approx(BYTES_PER_MS, rel=1e-3) and gpu.products.start_ms < 1.1 * START_MS


def test_what_a_cache_held_is_read_from_memory() -> None:
    """Matrices under 100 MB take half as long here, called again and again, as a model's would."""
    sizes = np.array([(m, n, k) for m in (1, 64) for n in made_up.SIZES for k in made_up.SIZES], float)
    ms = np.array([float_ms(*point) / (2 if 2 * point[1] * point[2] < 1e8 else 1) for point in sizes])
    products = Products(Lattice(sizes, ms), Spreads(0.1, 0.2))
    found = products.floats(1, 4096, 4096)
    assert (found.ms, found.spread, found.basis) == (pytest.approx(float_ms(1, 4096, 4096), rel=0.1), 0.1, MODELLED)
    assert products.floats(1, 16384, 16384).ms == pytest.approx(float_ms(1, 16384, 16384), rel=0.01)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (28672, 8192)])
def test_packed_weights_take_their_bytes_with_few_rows_and_their_operations_with_many(
    gpu: GpuTables, bits: int, n: int, k: int
) -> None:
    size = n * k * (bits / 8 + 2 / 128)
    reading, multiplying = size / PACKED_BYTES_PER_MS, 2 * n * k / OPS_PER_MS
    for rows, tile in ((1, 16), (16, 16), (17, 32), (2048, 2048)):
        found = gpu.products.packed(rows, n, k, size, KERNEL)
        wanted = 0.009 + np.hypot(reading, tile * multiplying)
        assert tiled(rows) == tile and found.basis == MODELLED
        assert found.ms == pytest.approx(wanted, rel=0.05), rows
    along = gpu.products.packed(1, n, k, size, replace(KERNEL, step_ms=1e-3)).ms
    assert along == pytest.approx(1e-3 * k, rel=0.05)  # a step each, one after the other
    one_by_one = gpu.products.packed(1, n, k, size, replace(KERNEL, overlap=1.0)).ms
    assert one_by_one == pytest.approx(0.009 + reading + 16 * multiplying, rel=0.05)


@pytest.mark.parametrize(
    ("batch", "heads", "tokens"),
    [(1, Heads(32, 8, 128), 4096), (8, Heads(32, 8, 64), 256), (8, Heads(16, 2, 128), 4096)],
)
@pytest.mark.parametrize("cache", [BFLOAT16, FP8])
def test_attention_of_a_token_is_looked_up(gpu: GpuTables, batch: int, heads: Heads, tokens: int, cache: str) -> None:
    found = gpu.decode.one_token(batch, heads, tokens, cache)
    wanted = cached_ms(batch, heads.keys, heads.values, tokens, 2 if cache == BFLOAT16 else 1)
    assert (found.ms, found.basis) == (pytest.approx(wanted), INTERPOLATED)


def test_heads_that_nobody_measured_are_more_sequences_of_fewer(gpu: GpuTables) -> None:
    """64 heads of keys are 8 sequences of 8; heads of 96 values as many of 64 or 128."""
    found = gpu.decode.one_token(8, Heads(64, 64, 64), 4096, BFLOAT16)
    assert (found.ms, found.basis) == (pytest.approx(cached_ms(64, 8, 64, 4096, 2)), INTERPOLATED)
    found = gpu.decode.one_token(8, Heads(9, 3, 64), 4096, BFLOAT16)
    assert found.ms == pytest.approx(cached_ms(24, 1, 64, 4096, 2), rel=0.2) and found.basis == INTERPOLATED
    found = gpu.decode.one_token(8, Heads(32, 8, 96), 4096, BFLOAT16)
    assert found.ms == pytest.approx(cached_ms(8, 8, 96, 4096, 2), rel=0.2) and found.basis == MODELLED


def test_a_cache_that_nobody_timed_there_takes_what_floats_take(gpu: GpuTables) -> None:
    """An A100 has times of bfloat16 alone."""
    only = {kind: times for kind, times in gpu.decode._lattices.items() if kind[0] == BFLOAT16}
    older = Attention(only, gpu.products.reading_ms, 0.1)
    found = older.one_token(8, Heads(32, 8, 128), 4096, FP8)
    assert (found.ms, found.basis) == (pytest.approx(cached_ms(8, 8, 128, 4096, 2)), MODELLED)


def test_attention_of_a_prompt_is_looked_up_and_a_window_has_its_share_of_pairs(gpu: GpuTables) -> None:
    heads = Heads(32, 8, 128)
    whole = gpu.prefill.prompt(1, heads, 4096, BFLOAT16, None)
    assert (whole.ms, whole.basis) == (pytest.approx(made_up.prompt_ms(1, 32, 128, 4096)), INTERPOLATED)
    assert gpu.prefill.prompt(1, heads, 4096, BFLOAT16, 8192) == whole
    pairs = sum(min(i, 1024) for i in range(1, 4097)) / sum(range(1, 4097))
    part = gpu.prefill.prompt(1, heads, 4096, BFLOAT16, 1024)
    assert (part.ms, part.basis) == (pytest.approx(pairs * whole.ms), MODELLED)


def test_adding_up_is_of_as_many_gpus_as_were_measured(gpu: GpuTables) -> None:
    assert gpu.reduce is not None and gpu.reduce.counts == (2, 4, 8)
    assert gpu.reduce.of(4, 131072).ms == pytest.approx(made_up.reduce_ms(4, 131072))  # as captured, not one by one
    with pytest.raises(InputError, match="2, 4, 8 of them, got 3"):
        gpu.reduce.of(3, 131072)


def test_packed_weights_are_read_as_fast_as_experts_were(gpu: GpuTables) -> None:
    """Slower than floats here; without times of experts, or with too few, as fast as those."""
    assert gpu.products.packed_bytes_per_ms == pytest.approx(PACKED_BYTES_PER_MS, rel=0.1)
    none = {name: np.array(["marlin"] if name == "kernel_source" else [1]) for name in experts.COLUMNS}
    assert experts.bytes_per_ms(none) is None
    floats = Products(gpu.products._floats, Spreads(0.1, 0.2))
    assert floats.packed_parts(1, 4096, 16384, 1e8)[0] == pytest.approx(1e8 / BYTES_PER_MS, rel=0.05)
    assert gpu.products.packed_parts(1, 4096, 16384, 1e8)[0] == pytest.approx(1e8 / PACKED_BYTES_PER_MS, rel=0.1)
