"""What a cache makes of keys and values, beside the libraries that make it, and the loss that is measured with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from planner.runtimes import RUNTIMES
from planner.runtimes.caches import CacheType
from records.errors import InputError
from supernet.keys_values import kept_keys_values
from tests.planner.runtime_fixtures import FAMILIES, save_tiny

HEADS = 3


def values(seed: int, width: int) -> torch.Tensor:
    """(windows, heads, tokens, values of a head) with what rounding trips over: zeros, one sign alone, outliers."""
    x = torch.randn(2, HEADS, 5, width, generator=torch.Generator().manual_seed(seed))
    x[0, 0] = 0
    x[0, 1] = x[0, 1].abs()
    x[1, 0, :, 3] *= 1000
    return x


def kept(runtime: str, name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    member = RUNTIMES[runtime]()
    cache = next(cache for cache in member.caches if cache.name == name)
    return member.kept(cache, None, None, ())(0, x, -x)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_llama_cpp_s_blocks_are_those_of_its_own_library(name: str) -> None:
    import gguf

    kind, x = gguf.GGMLQuantizationType[name.upper()], values(0, 64)
    for ours, given in zip(kept("llamacpp", name, x), (x, -x), strict=True):
        theirs = gguf.dequantize(gguf.quantize(given.numpy(), kind), kind)
        assert (ours.numpy() == theirs).all()


@pytest.mark.parametrize(("name", "bits"), [("q8", 8), ("q4", 4)])
def test_mlx_s_groups_are_those_of_its_own_library(name: str, bits: int) -> None:
    """Of float16, as models of MLX have them: scales and offsets are of the type of what is kept."""
    mx = pytest.importorskip("mlx.core")
    x = values(1, 64).half().float()
    for ours, given in zip(kept("mlx", name, x), (x, -x), strict=True):
        packed = mx.quantize(mx.array(given.numpy()).astype(mx.float16), group_size=64, bits=bits)
        codes, *scales = packed
        theirs = np.array(mx.dequantize(codes, *(part.astype(mx.float32) for part in scales), 64, bits))
        assert np.abs(ours.numpy() - theirs).max() <= 1e-3 * np.abs(theirs).max() / 2**bits


def test_float8_is_cut_off_where_it_ends() -> None:
    x = torch.tensor([[[[0.0, 1.0625, -3.3, 500.0]]]])
    assert kept("vllm", "fp8", x)[0].flatten().tolist() == [0.0, 1.0, -3.25, 448.0]


def test_a_runtime_that_does_not_say_is_told_apart() -> None:
    from planner.runtimes.base import Runtime

    with pytest.raises(InputError, match="llamacpp does not say how a cache of odd rounds"):
        Runtime.kept(RUNTIMES["llamacpp"](), CacheType("odd", 1, 1), None, None, ())  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_a_cache_that_rounds_nothing_changes_nothing(family: str, tmp_path: Path) -> None:
    """Whatever the attention: with a window, all of a text is still in one pass."""
    from transformers import AutoModelForCausalLM

    assert family in FAMILIES
    model = AutoModelForCausalLM.from_pretrained(save_tiny(family, tmp_path), dtype=torch.float32).eval()
    ids = torch.randint(3, 200, (2, 150), generator=torch.Generator().manual_seed(0))
    layers = set()

    def keep(layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        layers.add(layer)
        return keys, values

    with torch.no_grad():
        plain = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        with kept_keys_values(model, keep):
            same = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        after = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    assert layers == set(range(model.config.num_hidden_layers))
    assert torch.equal(plain, after) and torch.allclose(plain, same, atol=1e-5)
