"""Searching with measurements: the text that is searched on, and the study that is kept."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from commands.measuring import check_full_model, full_model
from commands.studies import JOURNAL, journal, named
from commands.terminal import note
from commands.waiting import Report, progress
from planner.search.crew import Crew, fresh_names
from records.child import beside
from records.installed import require_training
from supernet.progress import Progress, silent

if TYPE_CHECKING:
    from planner.frame import Framed
    from planner.landscape import TiedLandscape
    from planner.propose import Proposed
    from planner.search.base import Problem
    from planner.search.study import StudySearch
    from supernet.build import Supernet
    from supernet.checkpoint import SupernetFiles
    from supernet.reference import Reference

KEPT = "searching.safetensors"


def check_searchable(files: SupernetFiles, asked: Searching) -> None:
    """MissingError before anything else where the full model is needed and gone, InputError where the memory cannot
    hold so many workers, or the study cannot be opened."""
    if not files.place(KEPT).exists():
        check_full_model(files, "searching", ", or plan without --minutes")
    require_training()
    if asked.workers > 1:
        from commands.needs import check_searching_needs
        from supernet.recipe import Recipe

        check_searching_needs(files.spec, Recipe.from_json(files.info["recipe"]), asked.workers)
    _storage(files, asked)


@dataclass(frozen=True)
class Searching:
    """How long is searched for, by how many workers, and where the study is kept: an address of one of Optuna's
    storages, or None for a journal beside the supernet. `front` is for a front instead of one subnet."""

    minutes: float
    workers: int = 1
    storage: str | None = None
    trust: bool = False
    front: bool = False


def measured_search(
    files: SupernetFiles, asked: Searching, load: Callable[[], Supernet]
) -> Callable[[Framed, Proposed], Proposed]:
    """Goes on from finalists, by losses measured on text that no plan is chosen by: this process is the first worker,
    with the supernet that `load` gives, and starts the others.

    What was searched is kept: the same plan goes on where it ended, and several at a time share what they find.
    """

    def search(framed: Framed, proposed: Proposed) -> Proposed:
        import torch

        count, threads = asked.workers, torch.get_num_threads()
        each = max(1, threads // count)
        who = "" if count == 1 else f", {count} workers with {'1 thread' if each == 1 else f'{each} threads'} each"
        what = "a front " if asked.front else ""
        note(f"searching {what}for {asked.minutes:g} min from {len(proposed.finalists)} subnets{who}")
        seconds, began = 60 * asked.minutes, time.time()
        with progress() as report:
            reference = _reference(files, asked.trust, report)
            one = _search(files, asked, framed, seconds)
            names, resting = fresh_names(count), multiprocessing.get_context("spawn").Array("b", count)
            calls = [
                (_work, files, asked, framed, proposed, began, each, Crew(number, names, resting))
                for number in range(1, count)
            ]
            torch.set_num_threads(each)
            try:
                with beside(calls) as others:
                    crew = Crew(0, names, resting, others, note)
                    line = _Line(report, seconds)
                    landscape = _landscape(load(), reference, framed, line.tick)
                    found = _searched(framed, proposed, replace(one, landscape=landscape, crew=crew, show=line.show))
                note(f"searched: {line.said}, on text that no plan is chosen by")
                return found
            finally:
                torch.set_num_threads(threads)

    return search


def _work(
    files: SupernetFiles, asked: Searching, framed: Framed, proposed: Proposed, began: float, threads: int, crew: Crew
) -> None:
    """What another worker does, in its process."""
    import torch

    torch.set_num_threads(threads)
    landscape = _landscape(files.load(), _reference(files, asked.trust, None), framed)
    left = 60 * asked.minutes - (time.time() - began)
    _searched(framed, proposed, replace(_search(files, asked, framed, left), landscape=landscape, crew=crew))


def _search(files: SupernetFiles, asked: Searching, framed: Framed, seconds: float) -> StudySearch:
    from planner.front import with_aims
    from planner.search.front import FrontSearch
    from planner.search.measured import MeasuredSearch

    storage, problem = _storage(files, asked), framed.problem
    if not asked.front:
        return MeasuredSearch(seconds, storage=storage, study=_name(files, problem))
    search = FrontSearch(seconds, storage=storage)
    # its values are amounts and no limits, so plans within any limits go on with one study
    aims = [replace(aim, limit=0) for aim in search.aims(with_aims(framed))]
    return replace(search, study=_name(files, replace(problem, resources=tuple(aims))))


def _searched(framed: Framed, proposed: Proposed, search: StudySearch) -> Proposed:
    from planner.front import with_aims
    from planner.propose import searched, searched_front
    from planner.search.front import FrontSearch

    if isinstance(search, FrontSearch):
        return searched_front(with_aims(framed), framed.costs.spec, proposed, search)
    return searched(framed.problem, proposed, search)


def _landscape(supernet: Supernet, reference: Reference, framed: Framed, tick: Progress = silent) -> TiedLandscape:
    from planner.landscape import TiedLandscape
    from supernet.landscape import MeasuredLandscape

    return TiedLandscape(MeasuredLandscape(supernet, reference, tick), framed)


class _Line:
    """One line for all workers: what the study has, and how much of the time is over."""

    def __init__(self, report: Report, seconds: float) -> None:
        self.report, self.total, self.began = report, max(1, round(seconds)), time.monotonic()
        self.said = "no subnets"

    def show(self, what: str) -> None:
        self.said = what
        self.tick()

    def tick(self, *_: object) -> None:
        self.report(f"search, {self.said}", min(self.total, round(time.monotonic() - self.began)), self.total)


def _reference(files: SupernetFiles, trust: bool, report: Any) -> Reference:
    """Windows to search on and what the full model says of them, which is read once and kept."""
    from supernet.files import made_again
    from supernet.landscape import WINDOWS
    from supernet.recipe import Recipe
    from supernet.reference import Reference, read_references, write_references
    from supernet.stages.prepare import searching_windows

    path = files.place(KEPT, writing=True)
    if not path.exists():
        full = full_model(files, trust)
        recipe = Recipe.from_json(files.info["recipe"])
        windows = searching_windows(full.tokenizer, recipe, WINDOWS, report)
        first = files.reference().first
        write_references(path, {KEPT: Reference.of(full.model, windows, report, first, "for searching")})
    with made_again(path):
        return read_references(path)[KEPT]


def _storage(files: SupernetFiles, asked: Searching) -> Any:
    return journal(files.place(JOURNAL, writing=True)) if asked.storage is None else named(asked.storage)


def _name(files: SupernetFiles, problem: Problem) -> str:
    """The same for the same problem on the same windows: what it may choose from, what that costs, and the limits."""
    limits = [(one.name, one.limit, one.constant, sorted(map(str, one.table.items()))) for one in problem.resources]
    text = repr((KEPT, files.fingerprint, problem.space.to_json(), limits))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
