"""A model divided over GPUs: what each has, what cannot be divided, and that a plan says it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from planner.costs import Costs
from planner.frame import loadable
from planner.latency import estimate_latency
from planner.request import Workload
from planner.runtimes.base import DECODE
from planner.runtimes.llamacpp.runtime import LlamaCpp
from planner.runtimes.shapes import Shape
from planner.runtimes.vllm.pricing import SUMS
from planner.runtimes.vllm.runtime import Vllm
from planner.runtimes.vllm.split import divided
from profiles.catalog import load
from records.errors import InputError
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import EMBEDDING, HEAD

LLAMA = Shape("Llama 8B", 2, 4096, 14336, 32, 8, 128, 128256, tied=False, max_context=131072).spec()
SYM4 = Choice.parse("sym4g128")
SUBNET = Subnet.of({unit.name: SYM4 for unit in LLAMA.units})
H100 = load("h100-sxm-80gb")


def bytes_of(gpus: int) -> dict[str, int]:
    return {item.name: item.bytes for item in Vllm().pricing(LLAMA, Workload(8192, gpus=gpus), H100).memory(SUBNET)}


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_each_gpu_has_its_part_of_weights_and_cache(gpus: int) -> None:
    alone, each = bytes_of(1), bytes_of(gpus)
    whole = 0
    for unit in LLAMA.units:
        shapes = 8 * 3 * len(unit.linears)  # `weight_shape` and the like are whole on each
        assert abs(each[unit.name] - alone[unit.name] / gpus) <= shapes, unit.name
        whole += each[unit.name]
    assert each["KV cache"] * gpus == alone["KV cache"]
    assert each["norms and biases"] == alone["norms and biases"]
    assert each["buffers of libraries"] > alone["buffers of libraries"]


def test_heads_are_copied_where_they_are_fewer_than_the_gpus() -> None:
    few = Shape("few", 1, 4096, 14336, 32, 2, 128, 1000, tied=False).spec()
    part = divided(few, 8)
    shapes = {lin.name.rpartition(".")[2]: (lin.out_features, lin.in_features) for u in part.units for lin in u.linears}
    assert (part.num_heads, part.num_kv_heads) == (4, 1)
    assert shapes["q_proj"] == (512, 4096) and shapes["k_proj"] == shapes["v_proj"] == (128, 4096)
    assert shapes["o_proj"] == (4096, 512) and shapes["gate_proj"] == (1792, 4096)
    assert shapes["down_proj"] == (4096, 1792)
    assert {u.linears[0].out_features for u in part.units if u.role in (EMBEDDING, HEAD)} == {128}  # 1024 of 8
    assert divided(few, 1) is few


@pytest.mark.parametrize(
    ("gpus", "shape", "reason"),
    [
        (2, Shape("odd", 1, 576, 1536, 9, 3, 64, 1000), "its 9 heads are no multiple of 2"),
        (
            3,
            Shape("table", 1, 576, 1536, 9, 3, 64, 1000),
            "its vocabulary of 1024 rows, filled up, is no multiple of 3",
        ),
        (4, Shape("six", 1, 768, 1536, 12, 6, 64, 1000), "its 6 KV heads and 4 GPUs are no multiple of each other"),
    ],
)
def test_heads_that_do_not_divide_are_refused_in_a_line(gpus: int, shape: Shape, reason: str) -> None:
    spec = shape.spec()
    space = SearchSpace(tuple((unit.name, (SYM4,)) for unit in spec.units))
    with pytest.raises(InputError, match=f"vllm cannot divide {spec.name} over {gpus} GPUs: {reason}; use another"):
        loadable(space, spec, Vllm(), gpus)
    with pytest.raises(InputError, match="llamacpp cannot divide .*: it has a whole model on one device"):
        loadable(space, spec, LlamaCpp(), gpus)


def test_groups_and_packed_zeros_that_do_not_divide_are_left_out() -> None:
    """Of 1536 inputs each of 8 GPUs has 192: whole groups of 32 and 64, not of 128."""
    spec = Shape("narrow", 1, 1024, 1536, 8, 8, 128, 1000).spec()
    choices = tuple(sorted(Choice.parse(text) for text in ("sym4g32", "sym4g64", "sym4g128", "int4g64")))
    space = SearchSpace(tuple((unit.name, choices) for unit in spec.units))
    kept, dropped = loadable(space, spec, Vllm(), 8)
    assert {str(one) for one in kept["model.layers.0.mlp.down_proj"]} == {"sym4g32", "sym4g64", "int4g64"}
    assert "8 GPUs cannot each have whole groups of 128 of the 1536 inputs" in dropped["sym4g128 of down"]
    with pytest.raises(InputError, match="use another --gpus"):
        loadable(SearchSpace(tuple((unit.name, (SYM4,)) for unit in spec.units)), spec, Vllm(), 8)
    odd = replace(spec, units=tuple(replace(u, linears=tuple(replace(lin, out_features=100) for lin in u.linears))
                                    if u.role == "gate_up" else u for u in spec.units))  # fmt: skip
    assert "zeros of 4 bits" in str(
        Vllm().holding(odd).part_refusal(odd.unit("model.layers.0.mlp.gate_up"), Choice.parse("int4g64"), 4)
    )
    assert "no multiple of 8 GPUs" in str(
        Vllm().holding(odd).part_refusal(odd.unit("model.layers.0.mlp.gate_up"), Choice.parse("sym4g32"), 8)
    )


def test_a_token_takes_its_part_of_the_weights_and_the_sums() -> None:
    alone, two = (
        {item.name: item.ms for item in Vllm().pricing(LLAMA, Workload(8192, gpus=gpus), H100).latency(SUBNET, DECODE)}
        for gpus in (1, 2)
    )
    assert two.pop(SUMS) > 0 and two.keys() == alone.keys()
    for unit in LLAMA.units[1:]:
        assert two[unit.name] == pytest.approx(alone[unit.name] / 2, rel=0.01), unit.name
    assert two["kernels of each layer"] == alone["kernels of each layer"]
    pricing = Vllm().pricing(LLAMA, Workload(8192, gpus=2), H100)
    assert "sums over 2 GPUs take is a guess" in str(pricing.rests_on())
    assert estimate_latency(pricing, SUBNET).tpot_ms > 0


def test_the_command_says_all_that_vllm_would_choose_otherwise() -> None:
    costs = Costs(Vllm(), LLAMA, Workload(8192, 4, kv_cache="fp8", gpus=2), H100, rest_bytes=0)
    share = costs.share(SUBNET, 20 * 10**9)
    assert share is not None
    said = costs.runtime.packages.command(Path("DIR"), costs.workload, share)
    assert said == (
        "vllm serve DIR --max-model-len 8192 --max-num-seqs 4 --tensor-parallel-size 2 --kv-cache-dtype fp8 "
        f"--gpu-memory-utilization {share.utilization:.4g}"
    )


@pytest.mark.parametrize("gpus", [0, 65])
def test_a_number_of_gpus_that_no_machine_has_is_refused(gpus: int) -> None:
    with pytest.raises(InputError, match="gpus must be at"):
        Workload(128, 1, 32, gpus=gpus)
