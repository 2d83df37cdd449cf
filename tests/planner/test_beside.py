"""What stands beside a plan, each with the reason why it is not the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.plan import LARGER, OVER, STOCK, UNIFORM, WORSE, Plan
from planner.request import Budget
from planner.runtimes import RUNTIMES
from planner.runtimes.llamacpp import stock
from planner.search.base import Problem
from planner.search.exact import ExactSearch
from supernet.space import Choice, SearchSpace
from supernet.spec import LinearSpec, UnitSpec
from tests.planner.test_pipeline import BUDGET, Files, files, framed_for, planned, smollm2

__all__ = ["files"]  # a fixture


def test_every_bit_width_has_a_row_with_its_reason(files: Files) -> None:
    made = planned(files, replace(BUDGET, disk_bytes=75_000_000))
    problem = framed_for(files, made.budget).problem
    two, narrow, eight = (one for one in made.rejected if one.kind == UNIFORM)
    assert [two.mean_bits, narrow.mean_bits, eight.mean_bits] == [2, 4, 8]
    assert narrow.name == "uniform 4 bits" and eight.name == "uniform 8 bits, embedding of 4"
    assert (two.reason, two.over) == (WORSE, {})
    assert two.measured and two.kl > made.chosen.measured["kl"]
    assert eight.reason == OVER and not eight.measured
    smallest = problem.space.uniform(files.spec, 8).replace("model.embed_tokens", Choice(4, 64))
    assert eight.over == {
        one.name: pytest.approx(one.amount(smallest) - one.limit) for one in problem.resources
    } and set(eight.over) == {"memory", "disk"}  # fmt: skip
    (four,) = [one for one in made.rejected if one.kind == STOCK]
    assert four.name == "types of int4, embedding of 8" and four.mean_bits == 4.0
    assert four.reason == OVER and four.measured  # once, so that every plan of the supernet can be told from it
    others = [one for one in made.rejected if one.kind == "planned"]
    assert [one.name for one in others] == [one.source for one in made.compared if one.kind == "planned"][1:]
    assert all(one.reason == WORSE and one.measured for one in others)
    read = Plan.from_json(made.to_json())
    assert (read.rejected, read.notches, read.bits) == (made.rejected, made.notches, made.bits)


def test_what_the_builder_makes_is_measured_where_it_fits(files: Files) -> None:
    """As the best uniform subnet, or beside it."""
    for memory, kinds in ((262_000_000, {UNIFORM}), (10**9, {UNIFORM, STOCK})):
        made = planned(files, Budget(memory))
        assert {one.kind for one in made.compared} - {"planned"} == kinds
        (row,) = [one for one in made.rejected if one.kind == STOCK]
        assert row.measured and row.reason == WORSE and row.kl > made.chosen.measured["kl"]


def test_a_plan_within_a_loss_says_what_takes_more(files: Files) -> None:
    made = planned(files, Budget(10**9, max_kl=0.8))
    by_bits = {one.mean_bits: one for one in made.rejected if one.kind == UNIFORM}
    two, eight = by_bits[2.0], by_bits[8.0]
    assert two.reason == OVER and two.over == {"loss": pytest.approx(two.kl - 0.8)}
    assert eight.reason == LARGER and eight.memory_bytes > made.chosen.memory_bytes


def test_a_notch_of_memory_is_solved_for(files: Files) -> None:
    made = planned(files, BUDGET)
    problem = framed_for(files, BUDGET).problem
    more, less = made.notches
    assert (more.share, less.share) == (0.1, -0.1)
    assert more.instead_of == less.instead_of == ExactSearch().search(problem).candidates[0].loss
    assert more.kl == pytest.approx(least(problem, more.limit_bytes)) and more.kl < more.instead_of
    assert (less.kl, less.memory_bytes, less.limit_bytes) == (None, None, 205_200_000)  # below the smallest


def least(problem: Problem, memory: int) -> float:
    resources = (replace(problem.resources[0], limit=memory), *problem.resources[1:])
    return ExactSearch().search(replace(problem, resources=resources)).candidates[0].loss


def test_without_stock_tools_nothing_is_said_of_them(files: Files) -> None:
    two = files.space.restrict(lambda unit, choice: choice.bits != 4 or unit == "model.embed_tokens")
    assert not any(one.kind == STOCK for one in planned(replace(files, space=two), BUDGET).rejected)


def test_types_of_llamacpp_are_those_of_the_grids() -> None:
    spec = smollm2()
    linears = (Choice(3, 32, "sym"), Choice(4, 32, "sym"))
    tables = (Choice(4, 32, "sym"), Choice(8, 32, "sym"))
    space = SearchSpace.of({unit.name: tables if unit.is_table else linears for unit in spec.units})
    name, subnet = stock.stock(spec, space) or ("", None)
    assert name == "types of Q4_0" and subnet is not None
    assert {str(choice) for unit, choice in subnet if unit != "model.embed_tokens"} == {"sym4g32"}
    assert str(subnet["model.embed_tokens"]) == "sym8g32"
    assert stock.stock(spec, space.restrict(lambda unit, choice: choice.bits != 4)) is None
    assert RUNTIMES["llamacpp"]().stock(spec, space) == (name, subnet)


def test_the_medium_mixture_of_llamacpp_gives_some_layers_more() -> None:
    """24 layers: the first and the last three, and every third between."""
    spec = smollm2(24)
    units = []
    for unit in spec.units:
        if unit.role == "qkv":
            parts = [(f"{unit.name[:-3]}{part}_proj", f"{part}_proj", 576) for part in "qkv"]
            units += [UnitSpec(name, role, unit.layer, (LinearSpec(name, n, 576),)) for name, role, n in parts]
        else:
            units.append(unit)
    spec = replace(spec, units=tuple(units))
    choices = (Choice(4, 32, "k"), Choice(6, 16, "k"))
    name, subnet = stock.stock(spec, SearchSpace.of({unit.name: choices for unit in spec.units})) or ("", None)
    assert name == "types of Q4_K_M" and subnet is not None
    larger = [*range(3), *range(5, 21, 3), *range(21, 24)]
    for unit in spec.units:
        more = unit.is_table or (unit.role in ("v_proj", "down") and unit.layer in larger)
        assert subnet[unit.name].bits == (6 if more else 4), unit.name
