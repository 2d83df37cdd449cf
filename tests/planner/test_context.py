"""The longest context that the limits leave room for, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner import pipeline
from planner.plan import SHORTER, Plan
from planner.request import Asked, Budget, ContextRange, Workload, parse_context
from planner.runtimes import RUNTIMES
from planner.runtimes.onnxruntime.pricing import OnnxPricing
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.search import program
from records.errors import BudgetError, InputError
from tests.planner.test_decide import lost
from tests.planner.test_pipeline import DEVICE, WORKLOAD, Files, sensitive_files
from tests.planner.test_smallest import mixed_costs_more

MEMORY = 140_000_000
CONTEXTS = ContextRange(512, 3000)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return sensitive_files(tmp_path, layers=4)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are compared, so each is proven, however much else the machine does."""
    monkeypatch.setattr(program, "TIME_LIMIT_S", 100.0)


def planned(files: Files, contexts: ContextRange | int, max_kl: float | None = None, **options: Any) -> Plan:
    ranged = contexts if isinstance(contexts, ContextRange) else None
    kv_cache, memory = options.pop("kv_cache", None), options.pop("memory", MEMORY)
    context = contexts.shortest if isinstance(contexts, ContextRange) else contexts
    workload = replace(WORKLOAD, context=context, kv_cache=kv_cache)
    runtimes = options.pop("runtimes", (RUNTIMES["onnxruntime"](),))
    given = {"trials": 0, "cache_loss": lost, "contexts": ranged, **options}
    return pipeline.plan_any(files, runtimes, DEVICE, workload, Budget(memory, max_kl=max_kl), **given)


def longest(files: Files, max_kl: float | None = None, **options: Any) -> int:
    """By planning for each."""
    kept = []
    for context in CONTEXTS.contexts(256):
        try:
            planned(files, context, max_kl, **options)
        except BudgetError:
            break
        kept.append(context)
    return kept[-1]


@pytest.mark.parametrize(("max_kl", "kv_cache"), [(None, None), (None, "auto"), (0.1, None)])
def test_the_longest_is_taken_that_a_plan_exists_for(files: Files, max_kl: float | None, kv_cache: str | None) -> None:
    made = planned(files, CONTEXTS, max_kl, kv_cache=kv_cache)
    alone = planned(files, made.workload.context, max_kl, kv_cache=kv_cache)
    assert made.workload.context == longest(files, max_kl, kv_cache=kv_cache)
    assert made.compared == alone.compared and made.workload == alone.workload
    if max_kl is not None:
        assert made.workload.context < planned(files, CONTEXTS).workload.context
        assert made.chosen.predicted_kl <= max_kl


def test_within_a_loss_what_was_measured_decides(files: Files) -> None:
    """Mixtures lose more than their sum here, so fewer tokens are left than the sums promise."""
    measured = {"measure": mixed_costs_more(files)}
    made = planned(files, CONTEXTS, 0.1, **measured)
    assert made.workload.context < planned(files, CONTEXTS, 0.1).workload.context
    assert made.chosen.measured["kl"] <= 0.1
    with pytest.raises(BudgetError, match=r"a loss of 0\.1 cannot be met"):
        planned(files, made.workload.context + 256, 0.1, **measured)


def test_what_it_costs_is_said(files: Files) -> None:
    made, short = planned(files, CONTEXTS), planned(files, CONTEXTS.shortest)
    more = made.chosen.predicted_kl - short.chosen.predicted_kl
    begin = (
        f"context {made.workload.context}, the longest within the limits: {more:.4f} KL more than with 512, predicted"
    )
    assert [note for note in made.notes if note.startswith("context ")] == [
        f"{begin}; --max-loss says what it may cost"
    ]
    roomy = planned(files, CONTEXTS, memory=10**9)
    assert roomy.workload.context == 3000
    assert "context 3000, all that was asked for: as little KL as with 512" in roomy.notes
    limited = planned(files, CONTEXTS, 0.1)
    (note,) = [note for note in limited.notes if note.startswith("context ")]
    assert "KL more than with 512" in note and "--max-loss" not in note


def test_where_none_is_kept_the_shortest_is_refused(files: Files) -> None:
    for max_kl, memory in ((None, 10**8), (1e-6, MEMORY)):
        errors = []
        for contexts in (CONTEXTS, CONTEXTS.shortest):
            with pytest.raises(BudgetError) as error:
                planned(files, contexts, max_kl, memory=memory)
            errors.append(str(error.value))
        assert errors[0] == errors[1]


def test_the_runtime_that_has_the_longest_is_taken(files: Files) -> None:
    class Heavy(OnnxPricing):
        def memory(self, subnet: Any) -> Any:
            return tuple(replace(item, bytes=2 * item.bytes) if item.name == "KV cache" else item
                         for item in super().memory(subnet))  # fmt: skip

    class Other(OnnxRuntime):
        name = "other"

        def pricing(self, *bound: Any) -> OnnxPricing:
            return Heavy(*bound)

    made = planned(files, CONTEXTS, runtimes=(Other(), OnnxRuntime()))
    (other,) = made.others
    assert made.runtime == "onnxruntime" and (other.runtime, other.reason) == ("other", SHORTER)
    assert other.context is not None and other.context < made.workload.context
    assert Plan.from_json(made.to_json()) == made


def test_a_context_is_a_number_a_range_or_all() -> None:
    assert [parse_context(text) for text in ("4096", " 2048..8192 ", "max")] == [
        4096, ContextRange(2048, 8192), ContextRange(1, 10**9, open=True),
    ]  # fmt: skip
    assert CONTEXTS.contexts(1024) == [512, 1024, 2048, 3000] and ContextRange(256, 512).contexts(256) == [256, 512]
    for text in ("", "4k", "1..", "..5", "1...5", "MAX", "-1", "4096,8192"):
        with pytest.raises(InputError, match=r"tokens such as 4096, a range 2048\.\.8192, or max"):
            parse_context(text)
    for ends in ((2048, 2048), (4096, 2048), (0, 5)):
        with pytest.raises(InputError, match=r"is like 2048\.\.8192, got"):
            ContextRange(*ends)


def test_all_that_a_model_can_begins_with_a_prompt(files: Files) -> None:
    every = ContextRange(1, 10**9, open=True)
    assert every.of(files.spec) == ContextRange(256, 8192, open=True)
    assert every.of(files.spec, 4000).shortest == 4001
    assert CONTEXTS.of(files.spec) == CONTEXTS
    assert Asked(every, prompt_tokens=100).of(files.spec)[0] == Workload(256, prompt_tokens=100)
    with pytest.raises(InputError, match="at most the 8192 tokens"):
        Asked(ContextRange(4096, 8193)).of(files.spec)
