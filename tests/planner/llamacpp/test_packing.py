"""Blocks hold the very weights that went into them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.runtimes.llamacpp import packing
from planner.runtimes.llamacpp.formats import Q2_0, Q4_0, TensorType, is_exact, type_of
from records.errors import InputError
from supernet.space import Choice
from tests.planner.llamacpp.models import EVERY

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
    if is_exact(choice) or kind.name in ("Q4_0", "Q8_0"):  # scales are float16 numbers here
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
