"""Searching with measurements: the text that is searched on, and the study that is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from commands.measuring import check_full_model, full_model
from commands.terminal import note
from commands.waiting import progress
from records.installed import require_training

if TYPE_CHECKING:
    from planner.frame import Framed
    from planner.propose import Proposed
    from planner.search.base import Problem
    from supernet.checkpoint import SupernetFiles
    from supernet.landscape import MeasuredLandscape
    from supernet.reference import Reference

KEPT, STUDIES = "searching.safetensors", "searches"


def check_searchable(files: SupernetFiles) -> None:
    """MissingError before anything else where the full model is needed and gone."""
    if not files.place(KEPT).exists():
        check_full_model(files, "searching", ", or plan without --minutes")


def measured_search(
    files: SupernetFiles, minutes: float, storage: str | None = None, trust: bool = False
) -> Callable[[Framed, Proposed], Proposed]:
    """Goes on from finalists for so many minutes, by losses measured on text that no plan is chosen by.

    The study is kept in `storage`, an address of one of Optuna's storages, or in a journal beside the supernet: the
    same plan goes on where it ended, and several at a time share what they find.
    """
    check_searchable(files)

    def search(framed: Framed, proposed: Proposed) -> Proposed:
        from planner.landscape import TiedLandscape
        from planner.propose import searched
        from planner.search.measured import MeasuredSearch

        require_training()
        landscape = TiedLandscape(_landscape(files, trust), framed)
        note(f"searching for {minutes:g} min from {len(proposed.finalists)} subnets")
        kept = storage or _journal(files)
        return searched(
            framed.problem, proposed, MeasuredSearch(60 * minutes, landscape, kept, _name(files, framed.problem))
        )

    return search


def _landscape(files: SupernetFiles, trust: bool) -> MeasuredLandscape:
    from supernet.landscape import MeasuredLandscape

    with progress() as report:
        reference = _reference(files, trust, report)
    return MeasuredLandscape(files.load(), reference)


def _reference(files: SupernetFiles, trust: bool, report: Any) -> Reference:
    """Windows to search on and what the full model says of them, which is read once and kept."""
    from supernet.landscape import WINDOWS
    from supernet.prepare import searching_windows
    from supernet.recipe import Recipe
    from supernet.reference import Reference, read_references, write_references

    path = files.place(KEPT, writing=True)
    if not path.exists():
        full = full_model(files, trust)
        recipe = Recipe.from_json(files.info["recipe"])
        windows = searching_windows(full.tokenizer, recipe, WINDOWS, report)
        first = files.reference().first
        write_references(path, {KEPT: Reference.of(full.model, windows, report, first, "for searching")})
    return read_references(path)[KEPT]


def _journal(files: SupernetFiles) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(files.place(f"{STUDIES}.journal", writing=True))))


def _name(files: SupernetFiles, problem: Problem) -> str:
    """The same for the same problem on the same windows: what it may choose from, what that costs, and the limits."""
    limits = [(one.name, one.limit, one.constant, sorted(map(str, one.table.items()))) for one in problem.resources]
    text = repr((KEPT, files.fingerprint, problem.space.to_json(), limits))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
