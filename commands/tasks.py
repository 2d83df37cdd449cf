"""What `bitfleet evaluate --tasks` measures: the full model, then each subnet, and a package by its runtime."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from commands.measuring import check_full_model, full_model
from commands.packaged import Packaged
from commands.terminal import emit, note, say, table
from commands.waiting import progress
from planner.tasks.hub import go_offline
from planner.tasks.scores import Recovery, Score, recovery
from records.errors import InputError

if TYPE_CHECKING:
    from planner.tasks.asked import Says
    from supernet.checkpoint import SupernetFiles
    from supernet.space import Subnet

FULL = "full model"
# What libraries read when they are imported: there is one progress, and no processes are started for a metric.
QUIET = ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "DISABLE_MULTIPROC")


@dataclass(frozen=True)
class Question:
    """What is asked: tasks with commas, examples before each question, how many questions, as chats or as text."""

    tasks: str
    shots: int | None
    limit: int | None
    chat: bool


def measure_tasks(
    question: Question, files: SupernetFiles, subnets: Mapping[str, Subnet], package: Packaged | None, as_json: bool
) -> None:
    """Print what each reaches, and how much of the full model's that is."""
    for name in QUIET:
        os.environ.setdefault(name, "1")
    names = [name.strip() for name in question.tasks.split(",") if name.strip()]
    if not names:
        raise InputError("--tasks names a task or more, with commas; got none")
    check_full_model(files, "what the full model reaches", "")
    go_offline(names)
    from planner.tasks.asked import Asked
    from planner.tasks.harness import load_tasks
    from planner.tokens import model_tokenizer, stop_ids
    from supernet.text import beginning

    tasks = load_tasks(names, question.shots, question.limit, question.chat)
    tokenizer = model_tokenizer(files.model_dir, files.trusted)
    if question.chat and not tokenizer.chat_template:
        raise InputError(f"--chat needs a chat template, {files.spec.name} has none; leave --chat out")
    stops = stop_ids(files.model_dir, files.model_dir, files.spec.vocab_size)
    context = min(files.spec.max_context, package.context if package is not None else files.spec.max_context)
    scores: dict[str, list[Score]] = {}
    for name, says in speakers(files, subnets, package, stops):
        note(f"asking {name}")
        with progress() as report:
            asked = Asked(says(), tokenizer, beginning(tokenizer), stops, context, report)
            scores[name] = tasks.scores(asked)
        gc.collect()  # the model goes before the next comes
    if asked.cut:
        note(f"note: {asked.cut} texts are longer than the context of {context} tokens; each lost its beginning")
    if as_json:
        emit(list(_records(scores)))
    else:
        print_scores(scores)


def speakers(
    files: SupernetFiles, subnets: Mapping[str, Subnet], package: Packaged | None, stops: Sequence[int]
) -> Iterator[tuple[str, Callable[[], Says]]]:
    """What is asked, by the name that is printed; each is loaded when its turn comes."""
    from supernet.build import extract
    from supernet.evidence import alone
    from supernet.speaking import ModelSpeaker

    def whole() -> Says:
        return ModelSpeaker(full_model(files, files.trusted).model, stops)

    def part(subnet: Subnet) -> Callable[[], Says]:
        return lambda: ModelSpeaker(extract(alone(files, subnet), subnet), stops)

    files.check_hashes()
    yield FULL, whole
    if package is not None:
        yield package.name, lambda: package.speaker
    yield from ((name, part(subnet)) for name, subnet in subnets.items())


def print_scores(scores: Mapping[str, Sequence[Score]]) -> None:
    """A line for each metric of each task, beside the full model."""
    full = {score.key: score for score in scores[FULL]}
    rows = [
        (
            score.task,
            score.metric,
            f"{score.examples}",
            name,
            _value(score),
            _recovered(None if name == FULL else recovery(score, full[score.key])),
        )
        for name, found in scores.items()
        for score in found
    ]
    order = {key: number for number, key in enumerate(full)}
    rows.sort(key=lambda row: order[row[0], row[1]])  # the models of one metric stay in their order
    table(("TASK", "METRIC", "EXAMPLES", "OF", "VALUE", "OF THE FULL MODEL'S, 95 %"), rows)
    say("± of a value is one standard error over examples; of a share, 95 % as both models answered the same examples")
    if any(score.stderr == 0 for found in scores.values() for score in found):
        say("where all examples of a value are alike, they leave its error unknown")


def _value(score: Score) -> str:
    """An error of exactly zero is none: examples that are all alike say nothing of how others would differ."""
    if score.stderr == 0:
        return f"{score.value:.4g}, all alike"
    return f"{score.value:.4g}" if score.stderr is None else f"{score.value:.4g} ± {score.stderr:.2g}"


def _recovered(found: Recovery | None) -> str:
    if found is None:
        return "-"
    return f"{found.percent:.1f} %" if found.interval is None else f"{found.percent:.1f} ± {found.interval:.2g} %"


def _records(scores: Mapping[str, Sequence[Score]]) -> Iterator[dict[str, Any]]:
    full = {score.key: score for score in scores[FULL]}
    for name, found in scores.items():
        for score in found:
            share = None if name == FULL else recovery(score, full[score.key])
            yield {"of": name, **score.to_json(), "recovery": None if share is None else asdict(share)}
