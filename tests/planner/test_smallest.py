"""The smallest plan within a loss: memory is what is least, and what was measured decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from planner import pipeline
from planner.least import least_memory
from planner.plan import OVER, PLANNED, UNIFORM, Plan
from planner.quality import Quality
from planner.request import Budget, parse_bytes, parse_loss
from planner.runtimes import RUNTIMES
from records.errors import BudgetError
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Subnet
from tests.planner.test_pipeline import DEVICE, WORKLOAD, Files, files, planned
from tests.planner.test_search_exact import problem

__all__ = ["files"]  # a fixture

ROOM = 10**9


def mixed_costs_more(files: Files, factor: float = 1.6) -> Any:
    """What is measured is the sum, and for mixtures more than that."""
    table = SensitivityTable.load(files.path / SENSITIVITY_FILE)

    def measure(subnets: Sequence[Subnet]) -> list[Quality]:
        return [{"kl": table.predict(one) * (1 if len(widths(files, one)) == 1 else factor)} for one in subnets]

    return measure


def widths(files: Files, subnet: Subnet) -> set[int]:
    return {subnet[unit.name].bits for unit in files.spec.units if not unit.is_table}


def smallest(files: Files, loss: float, memory: int = ROOM, **options: Any) -> Plan:
    return planned(files, Budget(memory, max_kl=loss), **{"measure": mixed_costs_more(files), **options})


@pytest.mark.parametrize("seed", range(2))
def test_the_program_takes_the_loss_for_a_resource(seed: int) -> None:
    asked = problem(6, seed)
    memory = asked.resources[0]
    subnets = [asked.space.at(numbers) for numbers in product(*(range(len(o)) for _, o in asked.space.blocks))]
    fitting = [one for one in subnets if asked.feasible(one)]
    losses = sorted(asked.additive(one) for one in fitting)
    for most in (losses[0], losses[len(losses) // 3], losses[-1]):
        found = least_memory(asked, most)
        within = [one for one in fitting if asked.additive(one) <= most]
        least = min(memory.amount(one) for one in within)
        assert found is not None and asked.feasible(found)
        assert memory.amount(found) == least and asked.additive(found) <= most * (1 + 1e-6)
    assert least_memory(asked, losses[0] - 0.01 * abs(losses[0]) - 1e-6) is None


@pytest.mark.parametrize("loss", [0.3, 0.8])
def test_the_smallest_whose_measured_loss_holds_is_taken(files: Files, loss: float) -> None:
    made = smallest(files, loss)
    memory = made.chosen.memory_bytes
    assert made.chosen.measured["kl"] <= loss
    assert made.chosen.kind == PLANNED and f"the smallest within a loss of {loss:g}" in " ".join(made.notes)
    assert made.uniform is not None and memory < made.uniform.memory_bytes and made.uniform.measured["kl"] <= loss
    assert any("the smallest uniform subnet that keeps this loss, takes" in note for note in made.notes)
    largest, least = (planned(files, Budget(size)).chosen.memory_bytes for size in (ROOM, 211_000_000))
    fewer = planned(files, Budget(round(memory - 0.02 * (largest - least))), measure=mixed_costs_more(files))
    assert fewer.chosen.measured["kl"] > loss
    assert made.search[0]["measured"] <= 16
    for one in made.rejected:
        assert (one.memory_bytes >= memory) or (one.reason == OVER and set(one.over) == {"loss"}), one


def test_a_uniform_subnet_that_is_smaller_is_taken(files: Files) -> None:
    made = smallest(files, 0.9, measure=mixed_costs_more(files, 1000.0))
    assert made.chosen.kind == UNIFORM and made.chosen.measured["kl"] <= 0.9
    assert f"{made.chosen.source} is the smallest that keeps this loss, and was chosen" in made.notes


def test_without_measuring_the_sum_decides_and_the_plan_says_so(files: Files) -> None:
    made = smallest(files, 1.5, measure=None)
    assert made.chosen.source == "exact" and made.chosen.predicted_kl <= 1.5
    assert made.uniform is not None and made.chosen.memory_bytes < made.uniform.memory_bytes
    assert any("nothing was measured" in note for note in made.notes)


@pytest.mark.parametrize("loss", ["9999", "9999%"])
def test_any_loss_that_may_be_asked_for_is_planned_for(files: Files, loss: str) -> None:
    made = smallest(files, parse_loss(loss), measure=None)
    note = next(note for note in made.notes if note.startswith("the smallest within a loss of "))
    assert ("of perplexity" in note) == loss.endswith("%")
    assert made.chosen.predicted_kl <= parse_loss(loss)


def test_a_loss_that_the_memory_cannot_hold_names_what_would_do(files: Files) -> None:
    said = (
        r"^a loss of 0\.5 cannot be met within memory of 222 MB: the least found is (.*); the smallest plan within it"
    )
    with pytest.raises(BudgetError, match=said) as raised:
        smallest(files, 0.5, 222_000_000)
    memory, _, loss = str(raised.value).rpartition("use --mem ")[2].partition(" or --max-loss ")
    assert smallest(files, 0.5, parse_bytes(memory)).chosen.measured["kl"] <= 0.5
    assert smallest(files, parse_loss(loss), 222_000_000).chosen.memory_bytes <= 222_000_000


def test_a_memory_that_holds_nothing_says_that_its_need_is_without_the_loss(files: Files) -> None:
    with pytest.raises(
        BudgetError, match=r"^memory of 1 MB cannot be met, the smallest plan, whatever it loses, needs "
    ):
        smallest(files, 0.5, 10**6)


def test_a_loss_that_no_memory_holds_names_the_least(files: Files) -> None:
    with pytest.raises(BudgetError, match=r"no more memory of box would do; use --max-loss ") as raised:
        smallest(files, 1e-6)
    least = parse_loss(str(raised.value).rpartition("--max-loss ")[2])
    assert smallest(files, least).chosen.measured["kl"] <= least


def test_a_time_beside_the_loss_is_kept(files: Files) -> None:
    free = smallest(files, 1.5)
    limit = free.chosen.tpot_ms * (1 + free.bands["tpot"]) * 0.99
    with pytest.raises(
        BudgetError, match=r"within memory of 16 GB and time per token of .* tokens/s\): the least found"
    ):
        planned(files, Budget(16 * 10**9, tpot_ms=limit * 0.9, max_kl=0.01), measure=mixed_costs_more(files))
    within = planned(files, Budget(16 * 10**9, tpot_ms=limit, max_kl=2.0), measure=mixed_costs_more(files))
    assert within.chosen.tpot_ms * (1 + within.bands["tpot"]) <= limit and within.chosen.measured["kl"] <= 2.0
    with pytest.raises(BudgetError, match="^time per token of 1 ms"):
        planned(files, Budget(ROOM, tpot_ms=1.0, max_kl=1.5))


def test_the_rounding_of_activations_takes_its_part_of_the_loss(files: Files) -> None:
    rounding = replace(files, activations={"int8": 0.008})
    made = smallest(rounding, 1.0)
    assert made.budget.max_kl == 1.0 and made.limits.max_kl == pytest.approx(0.992)
    assert made.chosen.measured["kl"] <= 0.992
    assert "0.008 of the loss of 1 go to the rounding of activations, keys and values by onnxruntime" in made.notes
    with pytest.raises(BudgetError, match="rounding of activations, keys and values alone costs 0.008"):
        smallest(rounding, 0.005)


def test_of_runtimes_the_one_that_takes_least_memory_is_taken(files: Files) -> None:
    from tests.planner.test_plan_any import BOTH

    made = pipeline.plan_any(files, BOTH, DEVICE, WORKLOAD, Budget(ROOM, max_kl=1.5), mixed_costs_more(files))
    assert made.runtime == "light" and [one.runtime for one in made.others] == ["onnxruntime"]
    assert made.others[0].memory_bytes is not None and made.chosen.memory_bytes < made.others[0].memory_bytes
    assert RUNTIMES["onnxruntime"]().name == made.others[0].runtime


@pytest.mark.parametrize(("text", "expected"), [("0.02", 0.02), ("2%", math.log(1.02)), (" .5 % ", math.log(1.005))])
def test_losses(text: str, expected: float) -> None:
    assert parse_loss(text) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("text", ["", "0", "0%", "-1", "2 percent", "1e-3", "nan", "%", "1,5%", "2%%"])
def test_any_other_loss_says_what_is_accepted(text: str) -> None:
    with pytest.raises(ValueError, match=r"nats of KL a token such as 0\.02, or a share of perplexity such as 2%.*got"):
        parse_loss(text)
