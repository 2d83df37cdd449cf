"""What subnets and a package keep of the full model's score, on a task made from text that did not train.

    python benchmarks/tasks.py SUPERNET --text FILE [--questions 100] [--package DIR]

Each question is the beginning of a passage, and four continuations to choose from: its own, and three that begin
elsewhere in the text. The task is written as lm-eval reads one, and `bitfleet evaluate --tasks` measures it: the full
model and every uniform subnet of the supernet, or with --package a package of it beside the subnet of its plan.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from claims import Claim, finish, table

BEFORE, AFTER, CHOICES = 40, 8, 4  # words of a passage, words of each continuation
TASK = """
task: continuations
dataset_path: json
dataset_kwargs: {data_files: {test: continuations.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: label
target_delimiter: " "
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
METRIC, APART = "acc_norm", 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("supernet")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--package", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = written(given.text.read_text(encoding="utf-8"), given.questions, given.seed, Path(folder))
        found = scores(given.supernet, task, *(() if given.package is None else ("--package", str(given.package))))
    rows = [(one["of"], one["metric"], f"{one['value']:.3f} ± {one['stderr']:.3f}", kept(one)) for one in found]
    table(("of", "metric", "value", "% of the full model's, 95 %"), rows)
    finish(__file__, list(claims(found)), scores=found)


def written(text: str, count: int, seed: int, folder: Path) -> Path:
    """The task in `folder`, with its questions."""
    words, rng = text.split(), random.Random(seed)
    starts = rng.sample(range(0, len(words) - BEFORE - AFTER, BEFORE + AFTER), count * CHOICES)
    lines = []
    for number in range(count):
        own, *others = starts[number * CHOICES : (number + 1) * CHOICES]
        places, label = [own, *others], rng.randrange(CHOICES)
        places[0], places[label] = places[label], places[0]
        question = {
            "question": " ".join(words[own : own + BEFORE]),
            "choices": [" ".join(words[place + BEFORE : place + BEFORE + AFTER]) for place in places],
            "label": label,
        }
        lines.append(json.dumps(question) + "\n")
    (folder / "continuations.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "continuations.yaml").write_text(TASK, encoding="utf-8")
    return folder / "continuations.yaml"


def scores(supernet: str, task: Path, *more: str) -> list[dict[str, Any]]:
    command = [sys.executable, "cli.py", "evaluate", supernet, "--tasks", str(task), "--json", *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def kept(one: dict[str, Any]) -> str:
    share = one["recovery"]
    return "-" if share is None else f"{share['percent']:.1f} ± {share['interval']:.1f}"


def claims(found: list[dict[str, Any]]) -> Any:
    """A package is its subnet, to what rounding of activations turns."""
    by_name = {one["of"]: one["value"] for one in found if one["metric"] == METRIC}
    packages = [name for name in by_name if " in " in name]
    for name in packages:
        yield Claim(f"{METRIC} of {name} off its subnet's by", abs(by_name[name] - by_name["its subnet"]), APART)


if __name__ == "__main__":
    main()
