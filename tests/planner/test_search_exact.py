from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from planner.search import program
from planner.search.base import Decision, Option, Problem, Resource
from planner.search.exact import ExactSearch
from planner.search.program import shortfalls, solve
from records.errors import SystemFailure
from supernet.space import Choice, SearchSpace

SHAPES = (576 * 960, 576 * 576, 576 * 3072, 576 * 1536)  # the four kinds of unit of SmolLM2-135M
SPEED = {2: 1.0, 3: 1.1, 4: 1.05, 8: 1.5}


def problem(units: int, seed: int, share: float = 0.4) -> Problem:
    """Units of real shapes with random losses; milliseconds that do not grow with bits."""
    random = np.random.default_rng(seed)
    choices = tuple(Choice(b, 64) for b in SPEED)
    names = [f"unit{i}" for i in range(units)]
    weights = {name: SHAPES[i % 4] for i, name in enumerate(names)}
    memory = {n: {c: weights[n] * (c.bits + 0.625) // 8 for c in choices} for n in names}
    ms = {n: {c: weights[n] * 1e-8 * SPEED[c.bits] * random.lognormal(0, 0.01) for c in choices} for n in names}
    loss = {}
    for name in names:
        scale = 0.1 * random.lognormal(0, 1)
        loss[name] = {c: scale * np.exp(-1.4 * (c.bits - 2)) * random.lognormal(0, 0.1) for c in choices}
    low, high = (sum(pick(t.values()) for t in memory.values()) for pick in (min, max))
    fastest = sum(min(t.values()) for t in ms.values())
    space = SearchSpace.of(dict.fromkeys(names, choices))
    resources = (
        Resource("memory", "bytes", int(low + share * (high - low)) + 10**8, 1e8, memory),
        Resource("tpot", "ms", fastest * 1.15 + 1, 1.0, ms),
    )
    return Problem(space, loss, resources, groups={n: f"{i % 4} {i * 4 // units}" for i, n in enumerate(names)})


@pytest.mark.parametrize("units", [121, 330])
@pytest.mark.parametrize("seed", [0, 1])
def test_models_of_real_size_are_solved_to_a_proven_optimum_within_two_seconds(units: int, seed: int) -> None:
    started = time.process_time()
    found = ExactSearch().search(problem(units, seed))
    assert time.process_time() - started < 2.0
    assert found.trace["gap"] == 0
    assert len(found.candidates) == 1


def test_a_limit_is_never_passed_by_a_solvers_tolerance() -> None:
    for seed in range(10):
        tight = problem(24, seed, share=0.3)
        best = ExactSearch().search(tight).candidates[0].subnet
        memory = tight.resources[0]
        edge = replace(tight, resources=(replace(memory, limit=memory.amount(best) - 1), tight.resources[1]))
        assert all(edge.feasible(c.subnet) for c in ExactSearch().search(edge).candidates)


def test_running_out_of_time_is_never_taken_for_having_no_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = problem(121, 0)
    monkeypatch.setattr(program, "TIME_LIMIT_S", 1e-9)
    found = ExactSearch().search(whole)
    assert len(found.candidates) == 1
    assert found.trace["gap"] is None
    solved = solve(whole.space, whole.loss, whole.resources)
    assert solved is not None and not solved.proven
    monkeypatch.setattr(program, "PATIENCE_S", 1e-9)
    with pytest.raises(SystemFailure, match="neither a subnet within the limits nor that there is none"):
        ExactSearch().search(whole)


def test_the_shortfall_of_one_limit_is_the_smallest_that_works() -> None:
    whole = problem(24, 0)
    memory = whole.resources[0]
    impossible = replace(whole, resources=(replace(memory, limit=memory.least(whole.space) - 5e6), whole.resources[1]))
    assert ExactSearch().search(impossible).candidates == ()
    (short,) = shortfalls(impossible)
    assert short.resource.name == "memory"
    assert not short.alone
    for limit, solved in ((short.smallest, True), (short.smallest - 1, False)):
        again = replace(whole, resources=(replace(memory, limit=limit), whole.resources[1]))
        assert bool(ExactSearch().search(again).candidates) is solved


def caches(sizes: dict[str, tuple[int, float]]) -> Decision:
    """Bytes and loss of each way to keep keys and values; half as much time a token where it takes half the bytes."""
    most = max(size for size, _ in sizes.values())
    options = (
        Option(name, loss, {"memory": size, "tpot": 0.002 * size / most}) for name, (size, loss) in sizes.items()
    )
    return Decision("kv-cache", tuple(options))


@pytest.mark.parametrize(("share", "chosen"), [(0.2, "q4_0"), (0.3, "q8_0"), (0.9, "f16")])
def test_decisions_are_solved_for_with_the_weights(share: float, chosen: str) -> None:
    """Exactly as well as the best of a program for each option by itself."""
    whole = problem(24, 3, share)
    decision = caches({"f16": (6_000_000, 0.0), "q8_0": (3_200_000, 0.004), "q4_0": (1_700_000, 0.9)})
    alone = {}
    for option in decision.options:
        resources = tuple(replace(r, constant=r.constant + option.takes[r.name]) for r in whole.resources)
        found = solve(whole.space, whole.loss, resources)
        if found is not None:
            alone[option.name] = whole.additive(found.subnet) + option.loss
    together = solve(whole.space, whole.loss, whole.resources, (decision,))
    assert together is not None and together.proven
    (option,) = together.options
    assert whole.additive(together.subnet) + option.loss == pytest.approx(min(alone.values()), abs=1e-6)
    assert option.name == chosen == min(alone, key=alone.__getitem__)
    assert all(together.amount(resource) <= resource.limit for resource in whole.resources)


def test_bytes_with_a_band_beside_a_cache_are_told_apart_to_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A band makes bytes no whole numbers, and those of a cache are no multiples of the weights'."""
    asked: list[int] = []
    monkeypatch.setattr(program, "_milp", lambda *given, known=program._milp: asked.append(0) or known(*given))
    for seed in range(3):
        whole = problem(48, seed, share=0.3)
        memory = whole.resources[0]
        table = {unit: {c: 1.05 * amount for c, amount in row.items()} for unit, row in memory.table.items()}
        decision = caches({"f16": (6_000_000, 0.0), "q8_0": (3_200_001.7, 0.004)})
        wide = replace(memory, constant=1e8 + 0.3, limit=1.05 * memory.limit, table=table)
        best = solve(whole.space, whole.loss, (wide,), (decision,))
        assert best is not None
        taken = best.amount(wide)
        asked.clear()
        same = solve(whole.space, whole.loss, (replace(wide, limit=taken),), (decision,))
        assert same is not None and same.proven
        assert sum(whole.loss[u][c] for u, c in same.subnet) == pytest.approx(whole.additive(best.subnet), abs=1e-6)
        less = solve(whole.space, whole.loss, (replace(wide, limit=taken - 1e-3),), (decision,))
        assert less is not None and less.amount(wide) < taken
        assert len(asked) == 2


def test_amounts_are_whole_multiples_of_what_they_share() -> None:
    assert program._step(np.array([0.0, 1.05 * 3456 * 7, 1.05 * 3456 * 12])) == pytest.approx(1.05 * 3456)
    assert program._step(np.array([0.0, 1.0, np.pi])) is None
    assert program._step(np.array([0.0, 1.0, program.MOST_STEPS + 1.0])) is None
    assert program._step(np.zeros(3)) is None


def test_the_shortfall_is_that_of_the_leanest_options() -> None:
    whole = problem(24, 0)
    decision = caches({"f16": (6_000_000, 0.0), "q4_0": (1_700_000, 0.9)})
    memory, tpot = whole.resources
    short = replace(whole, decisions=(decision,), resources=(replace(memory, limit=memory.least(whole.space)), tpot))
    (found,) = shortfalls(short)
    assert not found.alone and found.smallest >= memory.least(whole.space) + 1_700_000
    enough = (replace(memory, limit=found.smallest), tpot)
    solved = solve(whole.space, whole.loss, enough, (decision,))
    assert solved is not None and [option.name for option in solved.options] == ["q4_0"]
    assert solve(whole.space, whole.loss, (replace(memory, limit=found.smallest - 1), tpot), (decision,)) is None


def test_limits_that_only_fail_together_are_both_offered() -> None:
    choices = (Choice(2, 32), Choice(4, 32))
    space = SearchSpace.of({"a": choices})
    loss = {"a": {choices[0]: 1.0, choices[1]: 0.5}}
    memory = Resource("memory", "bytes", 25, 0, {"a": {choices[0]: 20, choices[1]: 40}})
    tpot = Resource("tpot", "ms", 1.5, 0, {"a": {choices[0]: 2.0, choices[1]: 1.0}})
    short = shortfalls(Problem(space, loss, (memory, tpot)))
    assert [(s.resource.name, s.smallest, s.alone) for s in short] == [("memory", 40, False), ("tpot", 2.0, False)]


def test_limits_that_fail_each_alone_are_all_named() -> None:
    whole = problem(8, 0)
    memory, tpot = whole.resources
    short = shortfalls(replace(whole, resources=(replace(memory, limit=10.0), replace(tpot, limit=0.1))))
    assert [(s.resource.name, s.smallest, s.alone) for s in short] == [
        ("memory", memory.least(whole.space), True), ("tpot", tpot.least(whole.space), True)
    ]  # fmt: skip


def test_the_solver_prints_nothing() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/planner')\n"
        "from test_search_exact import problem\n"
        "from planner.search.exact import ExactSearch\n"
        "for seed in range(4): ExactSearch().search(problem(121, seed, share=0.7))\n"
        "print('all', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("all\n", "")
