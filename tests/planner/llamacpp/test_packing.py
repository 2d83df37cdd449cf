"""Blocks hold the very weights that went into them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.runtimes.llamacpp import kpacking, packing
from planner.runtimes.llamacpp.formats import Q2_0, Q2_K, Q4_0, Q6_K, TensorType, type_of
from records.errors import InputError
from supernet.space import Choice
from tests.planner.llamacpp.models import EVERY, K

ROWS, COLUMNS = 5, 192


def matrix(choice: Choice, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Any codes, scales of either sign, and on the grid `int` any zeros."""
    random = np.random.default_rng(seed)
    groups = (ROWS, COLUMNS // choice.group_size)
    codes = random.integers(0, 2**choice.bits, (ROWS, COLUMNS)).astype(np.uint8)
    scale = random.normal(size=groups).astype(np.float16).astype(np.float32)
    middle = np.full(groups, 2 ** (choice.bits - 1))
    zero = middle if choice.grid == "sym" else random.integers(0, 2**choice.bits, groups)
    return codes, scale, zero.astype(np.uint8)


def decoded(kind: TensorType, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    from gguf import GGMLQuantizationType, dequantize

    if kind is not Q2_0:
        return np.asarray(dequantize(rows, GGMLQuantizationType(kind.number)))
    blocks = rows.reshape(len(rows), -1, kind.block_bytes)
    scale = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    codes = (blocks[..., 2:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    return ((codes.reshape(*blocks.shape[:2], -1).astype(np.float32) - 1) * scale).reshape(len(rows), -1)


@pytest.mark.parametrize("name", EVERY)
def test_packed_weights_are_the_matrix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "ROWS_OF", 2 * COLUMNS)  # some rows at a time
    choice = Choice.parse(name)
    codes, scale, zero = matrix(choice)
    kind = type_of(choice)
    rows = packing.rows_of(kind, codes, scale, zero, "w")
    assert rows.shape == (ROWS, kind.row_bytes(COLUMNS))
    grouped = codes.reshape(*scale.shape, -1).astype(np.float32) - zero[..., None]
    wanted = (grouped * scale[..., None]).reshape(ROWS, COLUMNS)
    if choice.format.symmetric or kind.name in ("Q4_0", "Q8_0"):  # scales are float16 numbers here
        np.testing.assert_array_equal(decoded(kind, rows), wanted)
    else:  # the minimum is rounded to float16: at most 2**-11 of it
        most = np.repeat(np.abs(scale * zero), choice.group_size, axis=1) * 2**-11
        assert (np.abs(decoded(kind, rows) - wanted) <= most + 1e-6).all()


def test_scales_that_are_no_float16_are_rounded_to_nearest() -> None:
    choice = Choice(3, 32)
    codes, scale, zero = matrix(choice)
    exact = packing.rows_of(Q4_0, codes, scale, zero, "w")
    assert (packing.rows_of(Q4_0, codes, scale * np.float32(1 + 2**-13), zero, "w") == exact).all()


@pytest.mark.parametrize("scale", [7e4, -7e4, np.inf, np.nan])
def test_a_scale_beyond_float16_is_refused(scale: float) -> None:
    choice = Choice(4, 32, "sym")
    codes, scales, zero = matrix(choice)
    scales[1, 1] = scale
    with pytest.raises(InputError, match="model.layers.3"):
        packing.rows_of(Q4_0, codes, scales, zero, "model.layers.3")


def test_codes_that_a_type_does_not_hold_are_refused() -> None:
    choice = Choice(2, 64, "sym")
    codes, scale, zero = matrix(choice)
    with pytest.raises(InputError, match="0 to 3"):
        packing.rows_of(Q2_0, codes, scale, zero - 1, "w")
    with pytest.raises(InputError, match="0 to 15"):
        packing.rows_of(Q4_0, codes * 8, scale, zero, "w")


BLOCKS = 3
RANGES = {2: (0, 16), 3: (-32, 32), 4: (0, 64), 5: (0, 64), 6: (-128, 128)}


def k_parts(choice: Choice) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
    """Any numbers that a K type holds, the ends of their ranges among them."""
    random = np.random.default_rng(choice.bits)
    low, high = RANGES[choice.bits]
    groups = (ROWS, BLOCKS * 256 // choice.group_size)
    shared = {name: random.normal(size=(ROWS, BLOCKS)).astype(np.float16) for name in ("d", "dmin")}
    scales = random.integers(low, high, groups).astype(np.int8 if low else np.uint8)
    scales[0, :4] = low, high - 1, low, high - 1
    minima = random.integers(0, high, groups).astype(np.uint8)
    every = {**shared, "scales": scales, "minima": minima}
    codes = random.integers(0, 2**choice.bits, (ROWS, BLOCKS * 256)).astype(np.uint8)
    return codes, {name: every[name] for name in choice.format.parts(choice.bits)[1:]}


@pytest.mark.parametrize("name", K)
def test_super_blocks_are_read_as_what_went_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, by the other program's reader."""
    monkeypatch.setattr(kpacking, "ROWS_OF", 2 * BLOCKS * 256)
    choice = Choice.parse(name)
    codes, parts = k_parts(choice)
    kind = type_of(choice)
    rows = kpacking.rows_of(kind, codes, parts, "w")
    assert rows.shape == (ROWS, kind.row_bytes(BLOCKS * 256))
    each = 256 // choice.group_size
    scale = np.repeat(parts["d"].astype(np.float32), each, 1) * parts["scales"].astype(np.float32)
    if "minima" in parts:
        low = np.repeat(parts["dmin"].astype(np.float32), each, 1) * parts["minima"].astype(np.float32)
    else:
        low = scale * 2 ** (choice.bits - 1)
    grouped = codes.reshape(*scale.shape, -1).astype(np.float32)
    np.testing.assert_array_equal(
        decoded(kind, rows), (grouped * scale[..., None] - low[..., None]).reshape(codes.shape)
    )


@pytest.mark.parametrize("name", K)
def test_what_the_grid_stores_is_what_the_file_is_read_as(name: str) -> None:
    import torch

    from supernet.grids import GRIDS

    choice = Choice.parse(name)
    weight = torch.randn(7, 512, generator=torch.Generator().manual_seed(0))
    found = GRIDS["k"].nearest(weight, choice, torch.rand(512, generator=torch.Generator().manual_seed(1)))
    sides = {part: tensor for part, tensor in found.parts.items() if part != "codes"}
    rows = kpacking.rows_of(type_of(choice), found.grid.codes(found), sides, "w")
    np.testing.assert_allclose(decoded(type_of(choice), rows), found.dequantize().numpy(), rtol=0, atol=2e-6)


def test_numbers_that_a_k_type_does_not_hold_are_refused() -> None:
    codes, parts = k_parts(Choice.parse("k2g16"))
    with pytest.raises(InputError, match="minima of Q2_K are from 0 to 15, w has 0 to 16"):
        kpacking.rows_of(Q2_K, codes, {**parts, "minima": parts["minima"] // 15 * 16}, "w")
    with pytest.raises(InputError, match="dmin of Q2_K are finite float16 numbers, w has others"):
        kpacking.rows_of(Q2_K, codes, {**parts, "dmin": parts["dmin"] * np.float16(np.inf)}, "w")
    codes, parts = k_parts(Choice.parse("k6g16"))
    with pytest.raises(InputError, match="d of Q6_K are finite float16 numbers"):
        kpacking.rows_of(Q6_K, codes, {**parts, "d": parts["d"].astype(np.float32)}, "w")
