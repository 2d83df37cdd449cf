"""Tasks by name or from a file, loaded with their data before any model is, and what a model reaches in them."""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any

import lm_eval.evaluator
import lm_eval.tasks
import numpy as np
from lm_eval.api.registry import metric_registry
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from planner.tasks.asked import Asked
from planner.tasks.hub import FILES
from planner.tasks.scores import Score, means
from records.cache import cache_dir
from records.errors import InputError, MissingError

NAMED = re.compile(r"^(?:task|group): *([\w.-]+) *$", re.MULTILINE)
RESAMPLED = 1000  # times, for the error of what is no mean

for library in ("lm_eval", "datasets"):
    logging.getLogger(library).setLevel(logging.CRITICAL)  # what stops a task is said in one line


@dataclass(frozen=True)
class Tasks:
    """Loaded tasks, as `TaskManager.load` gives them. `limit` is how many questions are asked, None for all; with
    `chat` each is a message of a user."""

    loaded: Mapping[str, Any]
    limit: int | None
    chat: bool

    def scores(self, model: Asked) -> list[Score]:
        """What `model` reaches: one score for each metric of each task and group. Seeds are lm-eval's own."""
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        for task in self.loaded["tasks"].values():
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)  # the same examples for each model
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # some metrics print
                found = lm_eval.evaluator.evaluate(
                    model, dict(self.loaded), limit=self.limit, bootstrap_iters=RESAMPLED,
                    apply_chat_template=self.chat, fewshot_as_multiturn=self.chat,
                )  # fmt: skip
        except Exception as error:
            if any(frame.f_globals.get("__name__") == Asked.__module__ for frame, _ in walk_tb(error.__traceback__)):
                raise  # the model's, and no metric's
            names = ", ".join(self.loaded["tasks"])
            raise InputError(
                f"answers must be judged by the metrics of {names}, they are not: {_said(error)}"
            ) from None
        assert found is not None  # of the first process
        scores = list(_scores(found))
        told = {score.task for score in scores}
        silent = [name for name in self.loaded["tasks"] if name in found["results"] and name not in told]
        if silent:
            raise InputError(
                f"a task gives a number, {', '.join(silent)} gives none; take metrics that go with its output_type"
            )
        return scores


def load_tasks(names: Sequence[str], shots: int | None, limit: int | None, chat: bool) -> Tasks:
    """The tasks and their data, with `shots` examples before each question, None for as many as they say.

    MissingError or InputError, one line, for what is not there or cannot be had or asked.
    """
    listed = [name for name in names if Path(name).suffix not in FILES]
    for name in listed:
        _check_mentioned(name)
    manager = TaskManager(include_defaults=bool(listed))
    found: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        asked = _task_file(Path(name)) if Path(name).suffix in FILES else _listed(manager, name)
        try:
            loaded = manager.load([asked])
        except Exception as error:  # data come by a library of its own, and tasks may have code of theirs
            own = "correct the file, or lay its data beside it"
            fetched = "fetch its data once where there is a network"
            raise InputError(
                f"task {name} must load with its data, it does not: {_said(error)}; "
                f"{fetched if name in listed else own}"
            ) from None
        for task in loaded["tasks"].values():
            _check_asked(name, task, shots, limit)
        for kind, some in loaded.items():
            found[kind] |= some
    return Tasks(found, limit, chat)


def _said(error: BaseException) -> str:
    """What an error says in a line, the first of those that led to it."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, StopIteration):  # lm-eval looks at the first
        return "there are no questions in its data"
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said:.300}" if said else type(error).__name__


def _check_asked(name: str, task: Any, shots: int | None, limit: int | None) -> None:
    """Have the examples before each question set; InputError where one of the questions cannot be asked."""
    own = task.get_config("num_fewshot")  # of a task that says 0, examples make another one
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    if getattr(task, "UNSAFE_CODE", False):
        raise InputError(f"task {name} runs code that a model wrote, which is not done here; leave it out")
    if not task.aggregation():
        raise InputError(f"a task has metrics, the metric_list of {name} is empty; name one, such as acc")
    try:
        task.build_all_requests(limit=limit)
    except Exception as error:  # templates and functions of the task's own
        raise InputError(f"task {name} must ask its questions, it does not: {_said(error)}") from None
    for request in task.instances:
        if request.request_type == "generate_until" and normalize_gen_kwargs(request.args[1])["do_sample"]:
            raise InputError(
                f"answers must be the likeliest tokens, task {name} asks for do_sample; take that out of it"
            )


def _check_mentioned(name: str) -> None:
    """InputError where no file of lm-eval's tasks has the name anywhere, which is known long before they are read."""
    known, mentioned = set[str](), False
    for path in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8", errors="replace")
        mentioned |= name in text
        known.update(NAMED.findall(text))
    if not mentioned:
        raise _unknown(name, known)


def _unknown(name: str, known: Iterable[str]) -> InputError:
    near = difflib.get_close_matches(name, known, 3)
    hint = f"; near it: {', '.join(near)}" if near else ""
    return InputError(f"a task is a .yaml file or one that lm-eval lists, got {name!r:.80}{hint}")


def _listed(manager: TaskManager, name: str) -> str:
    if name not in manager.task_index:
        raise _unknown(name, manager.all_tasks)
    return name


def _task_file(path: Path) -> dict[str, Any]:
    """What a task's file says, with the data that lie beside it."""
    if not path.is_file():
        raise MissingError(f"no task file at {path}; give one that is there, or the name of one of lm-eval's tasks")
    try:
        config = load_yaml(path)
    except Exception as error:
        raise InputError(f"{path} is no task file: {' '.join(str(error).split()):.300}") from None
    if not {"task", "group"} & config.keys():
        raise InputError(f"a task file names its `task`, {path} does not")
    _check_metrics(path, config)
    options = config.get("dataset_kwargs")
    if isinstance(options, dict) and "data_files" in options:
        here = {"data_files": _beside(options["data_files"], path.parent), "cache_dir": str(cache_dir() / "datasets")}
        config["dataset_kwargs"] = {**options, **here}
    return config


def _check_metrics(path: Path, config: Mapping[str, Any]) -> None:
    """InputError for a metric that lm-eval does not have, where nothing says how it is taken."""
    asked = config.get("metric_list")
    for one in asked if isinstance(asked, list) else []:
        name = one.get("metric") if isinstance(one, dict) else None
        if not isinstance(name, str) or "process_results" in config or one.get("hf_evaluate"):
            continue
        if name not in metric_registry and "aggregation" not in one:
            near = difflib.get_close_matches(name, metric_registry, 3)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise InputError(f"a metric is one that lm-eval has, {path} asks for {name!r:.80}{hint}")


def _beside(files: Any, folder: Path) -> Any:
    """Paths of data files, with those that lie in the `folder` as they are from here."""
    if isinstance(files, dict):
        return {name: _beside(one, folder) for name, one in files.items()}
    if isinstance(files, list):
        return [_beside(one, folder) for one in files]
    here = folder / str(files)
    return str(here.resolve()) if here.is_file() else files


def _scores(found: Mapping[str, Any]) -> Any:
    for task, values in found["results"].items():
        samples = found.get("samples", {}).get(task, [])
        higher = found.get("higher_is_better", {}).get(task, {})
        for name, value in values.items():
            metric, comma, kept = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            ours = [one[metric] for one in samples if one["filter"] == kept and metric in one]
            error = values.get(f"{metric}_stderr,{kept}")
            yield Score(
                task, metric if kept == "none" else f"{metric} ({kept})", float(value),
                float(error) if isinstance(error, (int, float)) and math.isfinite(error) else None,
                len(ours) or int(found.get("n-samples", {}).get(task, {}).get("effective", 0)),
                higher.get(metric) is not False, means(ours, float(value)),
            )  # fmt: skip
