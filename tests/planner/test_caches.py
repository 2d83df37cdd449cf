"""How keys and values are kept: each runtime says which types it has, what they take, and refuses the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from planner.decide import checked_caches
from planner.request import Workload
from planner.runtimes import RUNTIMES
from planner.runtimes.base import DECODE, Runtime
from planner.runtimes.caches import FLOAT16, CacheType
from planner.runtimes.shapes import SMOLLM2
from profiles.device import DeviceProfile
from records.errors import InputError
from supernet.space import Choice, Subnet

DEVICE = DeviceProfile(
    name="test", kind="cpu", vendor="test", model="test", memory_bytes=2**34, measured=False, source="test",
    date="2026-01-01", threads=1, bandwidth_bytes_per_s=2e10, bandwidth_basis="datasheet", int8_ops_per_s=1e12,
    bf16_ops_per_s=1e12,
)  # fmt: skip
SPEC = SMOLLM2.spec()
SUBNET = Subnet.of({unit.name: Choice(8 if unit.is_table else 4, 32, "sym") for unit in SPEC.units})
CONTEXT = 4096
ALL = [(name, cache.name) for name, member in RUNTIMES.items() for cache in member.caches]
VALUES = 2 * 30 * 3 * 64 * CONTEXT  # of keys and values: layers, heads of 64


def kept(runtime: Runtime, name: str | None) -> int:
    items = runtime.pricing(SPEC, Workload(CONTEXT, kv_cache=name), DEVICE).memory(SUBNET)
    return sum(item.bytes for item in items if item.name == "KV cache")


def attention(runtime: Runtime, name: str | None) -> float:
    items = runtime.pricing(SPEC, Workload(CONTEXT, 1, 4000, kv_cache=name), DEVICE).latency(SUBNET, DECODE)
    return sum(item.ms for item in items if item.name == "attention")


@pytest.mark.parametrize(("runtime", "name", "bits"), [
    ("llamacpp", "f16", 16), ("llamacpp", "q8_0", 8.5), ("llamacpp", "q4_0", 4.5), ("onnxruntime", "f32", 32),
    ("vllm", "f16", 16), ("vllm", "fp8", 8), ("mlx", "f16", 16), ("mlx", "q8", 8.5), ("mlx", "q4", 4.5),
])  # fmt: skip
def test_a_type_takes_its_bits(runtime: str, name: str, bits: float) -> None:
    member = RUNTIMES[runtime]()
    assert member.cache(Workload(CONTEXT, kv_cache=name)).bits == bits
    spare = VALUES * 16 // CONTEXT if runtime == "vllm" else 0  # of its blocks of 16 tokens one is never given away
    assert kept(member, name) * 8 == (VALUES + spare) * bits
    assert attention(member, name) > 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_unasked_it_is_the_first_and_others_are_refused_with_those_that_there_are(runtime: str) -> None:
    member = RUNTIMES[runtime]()
    names = [cache.name for cache in member.caches]
    assert member.cache(Workload(CONTEXT)).name == names[0] and len(set(names)) == len(names)
    assert kept(member, None) == kept(member, names[0]) == max(kept(member, name) for name in names)
    with pytest.raises(InputError, match=f"{runtime} keeps a KV cache as {', '.join(names)}, got 'q3_7'; give one"):
        member.cache(Workload(CONTEXT, kv_cache="q3_7"))


@pytest.mark.parametrize(("runtime", "name"), ALL)
def test_heads_that_blocks_do_not_divide_are_refused(runtime: str, name: str) -> None:
    member, workload = RUNTIMES[runtime](), Workload(CONTEXT, kv_cache=name)
    (cache,) = checked_caches(member, SPEC, workload)
    odd = replace(SPEC, head_dim=80)
    if cache.values == 1:
        assert checked_caches(member, odd, workload) == (cache,)
        return
    with pytest.raises(InputError, match=rf"heads of 80 values .* multiple of the {cache.values} of a block; use "):
        checked_caches(member, odd, workload)


@pytest.mark.parametrize(("runtime", "name"), ALL)
def test_the_command_asks_for_it(runtime: str, name: str) -> None:
    member = RUNTIMES[runtime]()
    plain, asked = (member.packages.launch(Path("p"), Workload(256, kv_cache=kind)) for kind in (None, name))
    if name == member.caches[0].name or runtime == "onnxruntime":  # whose graph says it
        assert asked == plain
    else:
        assert asked != plain and name.removeprefix("q").split("_")[0] in asked


def test_blocks_are_whole() -> None:
    cache = CacheType("q8_0", 32, 34)
    assert [cache.bytes_of(values) for values in (0, 1, 32, 33)] == [0, 34, 34, 68]
    assert cache.rounds and not FLOAT16.rounds


def test_a_workload_keeps_the_name_that_it_was_given() -> None:
    workload = Workload(512, kv_cache="q8_0")
    assert Workload.from_json(workload.to_json()) == workload
    assert Workload.from_json({"context": 512, "batch": 1, "prompt_tokens": 128}) == Workload(512)  # of before
    with pytest.raises(InputError, match="names a type such as q8_0, got 'Q8 0'"):
        Workload(512, kv_cache="Q8 0")
