"""Codes in 32-bit words, against a layout written down by hand and against the library that reads it."""

from __future__ import annotations

import numpy as np
import pytest

from planner.runtimes.bitstream import pack, unpack, words


def test_a_row_of_three_bits_is_one_stream() -> None:
    codes = np.arange(32, dtype=np.uint8)[None] % 8
    stream = sum(int(code) << (3 * i) for i, code in enumerate(codes[0]))
    assert [int(word) for word in pack(codes, 3)[0]] == [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(3)]


@pytest.mark.parametrize("bits", range(1, 9))
def test_unpacking_undoes_packing(bits: int) -> None:
    for rows, count in ((1, 1), (3, 64), (5, 33), (2, 4097), (4, 12)):
        codes = np.random.default_rng(bits).integers(0, 2**bits, (rows, count), np.uint8)
        packed = pack(codes, bits)
        assert packed.shape == (rows, words(count, bits)) and packed.dtype == np.dtype("<u4")
        assert np.array_equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_words_are_those_of_compressed_tensors(bits: int) -> None:
    library = pytest.importorskip("compressed_tensors.compressors.pack_quantized", reason="pip install bitfleet[vllm]")
    torch = pytest.importorskip("torch")
    codes = np.random.default_rng(bits).integers(0, 2**bits, (7, 96), np.uint8)
    centred = torch.from_numpy(codes.astype(np.int16) - 2 ** (bits - 1)).to(torch.int8)
    assert np.array_equal(library.pack_to_int32(centred, bits).numpy(), pack(codes, bits).view("<i4"))


@pytest.mark.parametrize("bits", (2, 3, 4, 5, 6, 8))
def test_the_words_are_those_of_mlx(bits: int) -> None:
    mx = pytest.importorskip("mlx.core", reason="pip install bitfleet[mlx]")
    codes = np.random.default_rng(bits).integers(0, 2**bits, (4, 128), np.uint8)
    one, none = mx.ones((4, 2)), mx.zeros((4, 2))
    found = mx.dequantize(mx.array(pack(codes, bits)), one, none, group_size=64, bits=bits)
    assert np.array_equal(np.array(found), codes.astype(np.float32))
