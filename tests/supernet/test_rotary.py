"""Rotary tables: exact arithmetic, and what transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from records.errors import InputError
from supernet.files import write_tensors
from supernet.rotary import Rotary, cosine_and_sine, read_rotaries, rotaries_of, tensors_of
from tests.tiny import tiny_config, tiny_model


def test_cosines_and_sines_are_within_two_last_bits() -> None:
    random = np.random.default_rng(0)
    near = np.arange(4096) * (np.pi / 4)  # where the reduction cancels most
    angles = np.concatenate([[0.0], near, random.uniform(0, 10, 10000), random.uniform(0, 2**24, 10000)])
    angles = angles.astype(np.float32).astype(np.float64)
    for ours, theirs in zip(cosine_and_sine(angles), (np.cos(angles), np.sin(angles)), strict=True):
        assert np.abs(ours - theirs).max() < 2**-52


def test_a_table_is_what_the_model_turns_by() -> None:
    config = tiny_config(max_position_embeddings=8192, head_dim=64)
    (rotary,) = rotaries_of(config).values()
    cosines, sines = rotary.table(8192)
    model = tiny_model(max_position_embeddings=8192, head_dim=64)
    theirs = model.base_model.rotary_emb(torch.zeros(1), torch.arange(8192)[None])
    for ours, wanted in zip((cosines, sines), theirs, strict=True):
        assert np.abs(ours - wanted[0, :, :32].numpy()).max() <= 2**-23
    assert np.array_equal(rotary.table(100)[0], cosines[:100])


def test_a_table_is_known_to_the_last_bit() -> None:
    """These are the bits on every machine: additions, multiplications and roundings are the same everywhere."""
    cosines, sines = Rotary((1.0, 0.31622776, 0.1, 0.0316227749), 1.25).table(5000)
    assert [value.hex() for value in map(float, (cosines[4999, 1], sines[4999, 2], cosines[17, 0]))] == KNOWN


KNOWN = ["-0x1.07d4c80000000p+0", "-0x1.e2ce200000000p-2", "-0x1.6035860000000p-2"]


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_frequencies_are_kept_as_they_are(family: str, tmp_path: Path) -> None:
    rotaries = rotaries_of(tiny_config(family))
    write_tensors(tmp_path / "rotary.safetensors", tensors_of(rotaries))
    assert read_rotaries(tmp_path / "rotary.safetensors") == rotaries
    write_tensors(tmp_path / "rotary.safetensors", {"|inverse": torch.ones(4)})
    with pytest.raises(InputError, match="is damaged"):
        read_rotaries(tmp_path / "rotary.safetensors")
