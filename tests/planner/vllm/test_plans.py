"""A plan for vLLM: its share and sequences in text, file and command, and what is refused before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from planner import pipeline
from planner.amounts import sequences
from planner.fleet.fleetfile import Fleet, Wanted
from planner.fleet.plan import plan_fleet
from planner.plan import Plan
from planner.request import Asked, Budget, ContextRange, Workload
from planner.runtimes.vllm import memory
from planner.runtimes.vllm.runtime import Vllm
from planner.summary import promises, shared, start, title
from profiles.catalog import load
from records.errors import BudgetError, InputError
from tests.planner.test_pipeline import Files, sensitive_files

RTX = load("rtx-4090-24gb")
LOAD = Workload(4096, 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return sensitive_files(tmp_path_factory.mktemp("supernet"), layers=6)


def planned(files: Files, budget: int, workload: Workload = LOAD, contexts: ContextRange | None = None) -> Plan:
    return pipeline.plan_any(files, (Vllm(),), RTX, workload, Budget(budget), trials=0, contexts=contexts)


def test_a_plan_says_the_share_and_the_command_that_takes_it(files: Files, tmp_path: Path) -> None:
    made = planned(files, 2_000_000_000)
    share = made.share
    assert share is not None and share.block_tokens == 16 and share.sequences >= LOAD.batch
    assert share.utilization * memory.seen_bytes(RTX) + memory.CONTEXT_BYTES <= 2_000_000_000
    assert made.memory.total_bytes * 1.05 <= 2_000_000_000
    assert f"of the GPU vllm takes {share.utilization:.4g}, of which" in str(shared(made))
    assert f"room for {sequences(share.sequences)} sequences of 4096 tokens at once (8 planned for" in str(shared(made))
    flags = f"--max-model-len 4096 --max-num-seqs 8 --gpu-memory-utilization {share.utilization:.4g}"
    assert str(start(made)).endswith(f"vllm serve DIR {flags}")
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made and made.to_json()["share"]["blocks"] == share.blocks


@pytest.mark.parametrize(
    ("count", "said"), [(0.5, "0.50"), (8.456, "8.46"), (99.99, "99.99"), (100.0, "100"), (108892.99, "108892")]
)
def test_room_for_many_sequences_is_said_in_whole_ones(count: float, said: str) -> None:
    assert sequences(count) == said


def test_all_of_a_card_is_what_vllm_takes_unasked(files: Files) -> None:
    made = planned(files, RTX.memory_bytes)
    assert made.share is not None and made.share.utilization == memory.UTILIZATION
    assert made.limits.memory_bytes == memory.usable_bytes(RTX, 1)
    assert "vllm takes at most 23.89 GB of rtx-4090-24gb unasked: planned for that" in made.notes


def test_less_memory_is_fewer_tokens_and_too_little_is_refused(files: Files) -> None:
    longest = [
        planned(files, budget, replace(LOAD, batch=64), ContextRange(512, 8192)).workload.context
        for budget in (1_800_000_000, 2_400_000_000, 24_000_000_000)
    ]
    assert longest == sorted(longest) and 512 <= longest[0] < longest[1] < longest[2] == 8192
    with pytest.raises(BudgetError, match="the smallest plan needs .* of memory; use --mem"):
        planned(files, 1_000_000_000)
    with pytest.raises(BudgetError, match="rtx-4090-24gb has no more: free some, use a shorter --context or smaller"):
        planned(files, 24_000_000_000, replace(LOAD, batch=4000))
    with pytest.raises(BudgetError, match="memory of 1 GB cannot .* rtx-4090-24gb has no more: free some"):
        planned(files, 1_000_000_000, replace(LOAD, batch=4000))  # no --mem is named that the GPU has not


def test_what_lacks_memory_is_told_over_how_many_gpus_it_would_fit(files: Files) -> None:
    crowd = replace(LOAD, batch=1200)
    with pytest.raises(BudgetError, match="or divide it over --gpus 3$"):  # of 9 heads
        planned(files, 24_000_000_000, crowd)
    assert planned(files, 24_000_000_000, replace(crowd, gpus=3)).workload.gpus == 3
    with pytest.raises(BudgetError, match="whatever it loses, needs .* or divide it over --gpus 3$"):
        pipeline.plan_any(files, (Vllm(),), RTX, crowd, Budget(24_000_000_000, max_kl=1.0))
    with pytest.raises(BudgetError) as refused:
        planned(files, 24_000_000_000, replace(crowd, batch=40_000))
    assert "--gpus" not in str(refused.value)


def test_a_gpu_without_the_kernels_is_named_once(files: Files) -> None:
    with pytest.raises(InputError, match="^vLLM's kernels .* need .* 7.5, v100-sxm-32gb has 7.0; plan for another"):
        pipeline.plan_any(files, (Vllm(),), load("v100-sxm-32gb"), LOAD, Budget(10**10), trials=0)


def test_a_plan_over_gpus_says_so_and_what_cannot_be_divided_is_refused(files: Files) -> None:
    made = planned(files, 6_000_000_000, replace(LOAD, gpus=3))
    assert "divided over 3 GPUs" in title(made) and promises(made)[0][0] == "peak memory of each GPU"
    assert "--tensor-parallel-size 3" in str(start(made)) and "of each GPU vllm takes" in str(shared(made))
    with pytest.raises(InputError, match="its 9 heads are no multiple of 2; use another --gpus"):
        planned(files, 6_000_000_000, replace(LOAD, gpus=2))
    with pytest.raises(InputError, match="dgx-spark-128gb has one GPU, got --gpus 3"):
        spark = load("dgx-spark-128gb")
        pipeline.plan_any(files, (Vllm(),), spark, replace(LOAD, gpus=3), Budget(10**10), trials=0)


def test_a_fleet_has_a_package_for_each_number_of_gpus(files: Files) -> None:
    devices = tuple(
        Wanted(f"on {gpus}", RTX.name, RTX, Budget(6_000_000_000), "vllm", Asked(4096, 8, gpus=gpus))
        for gpus in (1, 3, 3, 2)
    )
    named = tuple(replace(one, name=f"{one.name}, {number}") for number, one in enumerate(devices))
    made = plan_fleet(files, Fleet(None, 0.05, named), lambda name: Vllm(), trials=0)
    assert [(package.kind.gpus, list(package.plans)) for package in made.packages] == [
        (1, ["on 1, 0"]),
        (3, ["on 3, 1", "on 3, 2"]),
    ]
    assert len({package.name for package in made.packages}) == 2
    (refused,) = made.refused
    assert refused.wanted.name == "on 2, 3" and refused.refused.endswith("are no multiple of 2; use another gpus")
