"""What vLLM takes of a GPU: what others read in its logs, its rules for blocks, and the share that a plan names."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from planner.memory import estimate_memory
from planner.request import Workload
from planner.runtimes.base import ESTIMATE, CardShare
from planner.runtimes.caches import FLOAT16, CacheType
from planner.runtimes.shapes import SMOLLM2, Shape
from planner.runtimes.vllm import memory, scheduling
from planner.runtimes.vllm.blocks import blocks
from planner.runtimes.vllm.runtime import Vllm
from profiles.catalog import load
from records.errors import InputError
from supernet.space import Choice, Subnet
from supernet.spec import LinearSpec, UnitSpec

GIB = 2**30
TABLE = Path(__file__).parents[3] / "benchmarks" / "published_vllm_memory.csv"
ROWS = list(csv.DictReader(TABLE.open()))
FP8 = CacheType("fp8", 1, 1)
SPEC = SMOLLM2.spec()
H100, A100, RTX = load("h100-sxm-80gb"), load("a100-sxm-80gb"), load("rtx-4090-24gb")
SUBNET = Subnet.of({unit.name: Choice.parse("sym4g32") for unit in SPEC.units})


def shape(row: dict[str, str]) -> Shape:
    names = ("layers", "hidden", "feed_forward", "heads", "kv_heads", "head_dim", "vocabulary")
    return Shape(row["model"], *(int(row[name]) for name in names))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']}, {row['gpus']}, {row['cache']}")
def test_the_peak_of_a_pass_is_what_logs_say(row: dict[str, str]) -> None:
    tokens, sequences = int(row["tokens"]), int(row["sequences"])
    load_ = Workload(8192, sequences)
    assert (scheduling.pass_tokens(load_, H100), row["card"]) == (tokens, "H100 80GB")
    found = memory.peak_bytes(shape(row).spec(), tokens, sequences, int(row["gpus"]))
    assert found / GIB == pytest.approx(float(row["peak_gib"]), rel=0.025)
    outside = memory.OUTSIDE_BYTES if row["gpus"] == "1" else memory.OUTSIDE_BYTES_OF_SEVERAL
    assert outside / GIB == pytest.approx(float(row["outside_gib"]), abs=0.2)


@pytest.mark.parametrize("row", [row for row in ROWS if row["pool_tokens"]], ids=lambda row: f"{row['pool_tokens']}")
def test_a_pool_has_the_tokens_that_logs_say(row: dict[str, str]) -> None:
    cache = FP8 if row["cache"] == "fp8" else FLOAT16
    pool = blocks(shape(row).spec(), 8192, 8192, cache)
    least, most = (
        int((float(row["pool_gib"]) + rounded) * GIB) // pool.block_bytes * 16 for rounded in (-0.005, 0.005)
    )
    assert least <= int(row["pool_tokens"]) <= most


def test_blocks_are_of_16_tokens_and_one_is_never_given_away() -> None:
    found = blocks(SPEC, 4096, 2048, FLOAT16)
    assert found.block_bytes == 30 * 2 * 3 * 64 * 16 * 2 and found.of_sequence == 256
    assert blocks(SPEC, 4097, 2048, FLOAT16).of_sequence == 257
    assert found.bytes_for(3) == (3 * 256 + 1) * found.block_bytes
    assert found.concurrency(found.bytes_for(3)) == 769 / 256
    assert blocks(SPEC, 4096, 2048, FP8).block_bytes * 2 == found.block_bytes


@pytest.mark.parametrize(
    ("windows", "layers", "groups"),
    [
        ((512,) * 5 + (None,), 1, {None: 1, 512: 5}),  # Gemma 3
        (((512,) * 5 + (None,)) * 4 + (512, 512), 4, {None: 1, 512: 6}),  # the last group is filled up
        ((512, None) * 12 + (None,), 13, {None: 1, 512: 1}),  # nearly alike: the fewer are filled up
        ((512,) * 6, 6, {512: 1}),
    ],
)
def test_layers_with_windows_have_blocks_of_their_own(
    windows: tuple[int | None, ...], layers: int, groups: dict[int | None, int]
) -> None:
    spec = replace(Shape("windows", len(windows), 576, 1536, 9, 3, 64, 49152).spec(), windows=windows)
    found = blocks(spec, 32768, 2048, FLOAT16)
    in_window = -(-(512 - 1 + 2 * 2048) // 16) + 1
    assert found.block_bytes == layers * 2 * 3 * 64 * 16 * 2
    assert found.of_sequence == sum(n * (32768 // 16 if w is None else in_window) for w, n in groups.items())
    assert blocks(spec, 256, 2048, FLOAT16).of_sequence == sum(n * (16 if w is None else 17) for w, n in groups.items())


def test_a_pass_has_the_tokens_that_vllm_serve_takes_on_a_card() -> None:
    many = Workload(8192, 256)
    assert [scheduling.pass_tokens(many, one) for one in (H100, A100, RTX)] == [8192, 2048, 2048]
    assert (
        scheduling.pass_tokens(Workload(512), H100) == 512 and scheduling.pass_tokens(Workload(8, 4000, 2), RTX) == 4000
    )
    # 1, 2, 4, 8 to 248, 256 to 512: 51 sizes in pieces, of which 35 are of answers alone
    assert scheduling.graphs(many, H100) == 51 + 35 and scheduling.graphs(Workload(512), H100) == 2 + 1


def test_the_peak_of_experts_is_an_estimate_and_no_less_than_a_log_says() -> None:
    """Mixtral 8x7B on an H100, vLLM 0.19: 1.21 GiB."""
    dense = Shape("Mixtral", 1, 4096, 14336, 32, 8, 128, 32000, tied=False).spec()
    block, wide = "model.layers.0.mlp.experts", (14336, 4096)
    shapes = {"gate_proj": wide, "up_proj": wide, "down_proj": wide[::-1]}
    linears = tuple(LinearSpec(f"{block}.{i}.{tail}", *size) for i in range(8) for tail, size in shapes.items())
    kept = (unit for unit in dense.units if unit.role not in ("gate_up", "down"))
    spec = replace(dense, units=(*kept, UnitSpec(block, "experts", 0, linears, 2)))
    found = memory.peak_bytes(spec, 8192, 1024) / GIB
    assert 1.21 < found < 1.6
    uniform = Subnet.of({unit.name: Choice.parse("sym4g32") for unit in spec.units})
    items = Vllm().pricing(spec, Workload(8192), H100).memory(uniform)
    assert {item.name: item.basis for item in items}["peak of a pass"] == ESTIMATE


def test_graphs_are_as_many_as_a_log_says_and_take_what_it_expects() -> None:
    """Llama 3.1 8B on an H100 (51 sizes, all of them twice), and 256 sequences elsewhere."""
    llama = shape(ROWS[0]).spec()
    for sequences, count, gib in ((1024, 102, 0.84), (256, 86, 0.79)):
        load_ = Workload(8192, sequences)
        assert scheduling.graphs(load_, H100) == count
        uniform = Subnet.of({unit.name: Choice.parse("sym4g32") for unit in llama.units})
        items = {item.name: item.bytes for item in Vllm().pricing(llama, load_, H100).memory(uniform)}
        assert items["CUDA graphs"] / GIB == pytest.approx(gib, rel=0.06)


def test_what_is_left_of_a_share_is_for_keys_and_values() -> None:
    workload = Workload(4096, 16)
    pricing = Vllm().pricing(SPEC, workload, RTX)
    whole = pricing.share(SUBNET, RTX.memory_bytes)
    assert isinstance(whole, CardShare) and whole.utilization == memory.UTILIZATION
    parts = {item.name: item.bytes for item in pricing.memory(SUBNET)}
    pool = memory.blocks_of(SPEC, workload, RTX, FLOAT16)
    assert parts[memory.CACHE] == pool.bytes_for(16)
    beside = sum(parts.values()) - parts[memory.CACHE] - parts[memory.CONTEXT]
    left = memory.UTILIZATION * memory.seen_bytes(RTX) - beside
    assert pricing.share(SUBNET, Vllm().usable_bytes(RTX)) == whole
    assert whole.blocks == left // pool.block_bytes and whole.pool_bytes == whole.blocks * pool.block_bytes
    assert whole.sequences == pytest.approx(whole.blocks / 256, abs=0.005) and whole.sequences > 16
    total = estimate_memory(pricing, SUBNET).total_bytes
    tight = pricing.share(SUBNET, round(1.05 * total))  # as planner.bands leaves it
    assert tight is not None and tight.sequences >= 16 and tight.utilization < 0.2
    taken = tight.utilization * memory.seen_bytes(RTX) + parts[memory.CONTEXT]
    assert total <= taken <= 1.05 * total
    assert pricing.share(SUBNET, parts[memory.CONTEXT]) is None and pricing.share(SUBNET, 10**9) is None


def test_a_card_is_taken_but_for_what_vllm_leaves() -> None:
    runtime = Vllm()
    assert runtime.usable_bytes(H100) == int(0.92 * memory.seen_bytes(H100)) + memory.CONTEXT_BYTES
    assert runtime.usable_bytes(replace(H100, available_bytes=10**9)) == 10**9
    assert memory.seen_bytes(H100) / GIB == pytest.approx(79.19, rel=0.012)
    for name, seen in (("l40s-48gb", 44.42), ("l4-24gb", 22.03), ("t4-16gb", 14.57)):
        assert seen * 0.98 < memory.seen_bytes(load(name)) / GIB <= seen
    spark = load("dgx-spark-128gb")
    assert memory.seen_bytes(spark) / GIB == pytest.approx(121.69, rel=0.002)
    assert memory.usable_bytes(spark, 1) < 102 * GIB and memory.usable_bytes(spark, 1) / GIB > 90
    assert memory.seen_bytes(load("rtx-3090-24gb")) / GIB == pytest.approx(23.58, rel=0.012)


@pytest.mark.parametrize("wrong", [{"utilization": 1.1}, {"utilization": 0.0}, {"blocks": 0}, {"sequences": -1.0}])
def test_a_share_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        replace(CardShare(0.9, 32, 2, 16, 1.0), **wrong)  # type: ignore[arg-type]


def test_a_model_in_bfloat16_is_refused_where_a_gpu_has_none() -> None:
    gemma = replace(SPEC, architecture="Gemma2ForCausalLM")
    with pytest.raises(InputError, match="vLLM runs Gemma2ForCausalLM in bfloat16, .* 8.0, t4-16gb has 7.5; plan for"):
        Vllm().pricing(gemma, Workload(4096), load("t4-16gb"))
    assert Vllm().pricing(SPEC, Workload(4096), load("t4-16gb")).memory(SUBNET)
    assert Vllm().pricing(gemma, Workload(4096), A100).memory(SUBNET)
