"""bitfleet evaluate --tasks: lm-eval on tasks made on the spot, of the full model, of subnets and of packages."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="measures tasks by lm-eval; pip install 'bitfleet[tasks]'")

from supernet.checkpoint import open_supernet
from supernet.create import create
from supernet.recipe import Recipe
from tests.tiny import TEXT, WIDE, save_tiny, tiny_tokenizer

TEMPLATE = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
CHOICES = """
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: words.jsonl, train: shots.jsonl}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ANSWERS = """
task: answers
dataset_path: json
dataset_kwargs: {data_files: {test: words.jsonl}}
test_split: test
output_type: generate_until
generation_kwargs: {until: ["\\n"], max_gen_toks: 5}
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
metric_list: [{metric: exact_match}]
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: words.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
"""
QUESTIONS = [
    {"question": f"the {number} fox jumps over", "choices": [" the dog", " x", f" {number}"], "label": number % 3}
    for number in range(9)
]


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    save_tiny(folder / "model", **WIDE)
    tiny_tokenizer("<s> $A", TEMPLATE).save_pretrained(folder / "model")
    (folder / "train.txt").write_text(TEXT * 4)
    recipe = Recipe(
        (2, 8), group_size=32, grid="sym", quantizer="rtn", awq=0.0, steps=1, batch=1, window_tokens=16,
        data=str(folder / "train.txt"),
    )  # fmt: skip
    create(str(folder / "model"), folder / "net", recipe)
    return folder / "net"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, text in (("words", CHOICES), ("answers", ANSWERS), ("rolling", ROLLING)):
        (folder / f"{name}.yaml").write_text(text)
    for name, some in (("words", QUESTIONS), ("shots", QUESTIONS[:4])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    return folder


def of(done: Any) -> dict[tuple[str, str, str], Any]:
    assert done.code == 0, done.err
    return {(one["of"], one["task"], one["metric"]): one for one in json.loads(done.out)}


def log_probs(model: Any, tokenizer: Any, before: str, after: str) -> float:
    first, last = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after))
    ids = torch.tensor([256, *first, *last])
    said = model(ids[None]).logits[0].log_softmax(-1)
    return float(sum(said[-len(last) - 1 + number, token] for number, token in enumerate(last)))


def test_scores_are_those_of_plain_log_probabilities(bitfleet: Any, supernet: Path, tasks: Path) -> None:
    """Choices by their log probability after the beginning of a text; bits by byte of whole texts."""
    from supernet.build import extract

    names = ",".join(str(tasks / f"{name}.yaml") for name in ("words", "rolling"))
    found = of(bitfleet("evaluate", supernet, "--bits", 2, "--tasks", names, "--json"))
    net, tokenizer = open_supernet(supernet).load(), tiny_tokenizer()
    model = extract(net, net.space.uniform(net.spec, 2))
    said = [[log_probs(model, tokenizer, one["question"], c) for c in one["choices"]] for one in QUESTIONS]
    right = [np.argmax(one) == question["label"] for one, question in zip(said, QUESTIONS, strict=True)]
    per_letter = [
        np.array(one) / [len(c) for c in question["choices"]] for one, question in zip(said, QUESTIONS, strict=True)
    ]
    normed = [np.argmax(one) == question["label"] for one, question in zip(per_letter, QUESTIONS, strict=True)]
    accuracy = found["2 bits", "words", "acc"]
    assert accuracy["value"] == pytest.approx(np.mean(right)) and accuracy["examples"] == 9
    assert accuracy["stderr"] == pytest.approx(np.std(right, ddof=1) / 3)
    assert found["2 bits", "words", "acc_norm"]["value"] == pytest.approx(np.mean(normed))
    nats = sum(log_probs(model, tokenizer, "", one["question"]) for one in QUESTIONS)
    letters = sum(len(one["question"]) for one in QUESTIONS)
    bits = found["2 bits", "rolling", "bits_per_byte"]
    assert bits["value"] == pytest.approx(-nats / letters / math.log(2), rel=1e-4)
    assert bits["recovery"] is None and not bits["higher_is_better"]
    full = found["full model", "words", "acc"]
    assert accuracy["recovery"]["percent"] == pytest.approx(100 * accuracy["value"] / full["value"])


@pytest.mark.parametrize("name", ["onnxruntime", "llamacpp"])
def test_a_package_scores_as_its_subnet_does(
    bitfleet: Any, supernet: Path, tasks: Path, tmp_path: Path, name: str
) -> None:
    if name == "llamacpp":
        pytest.importorskip("xllamacpp", reason="runs the pinned build of llama.cpp")
    plan = tmp_path / "plan.json"
    where = ("--mem", "3GB", "--context", 96, "--prompt-tokens", 32, "--device", "laptop-i5-1240p-8gb")
    assert bitfleet("plan", supernet, *where, "--runtime", name, "--trials", 5, "--out", plan).code == 0
    assert bitfleet("export", plan, "--out", tmp_path / "package").code == 0
    names = ",".join(str(tasks / f"{name}.yaml") for name in ("words", "answers", "rolling"))
    done = bitfleet("evaluate", supernet, "--package", tmp_path / "package", "--tasks", names, "--json")
    found, packaged = of(done), f"package in {name}"
    assert {of for of, _, _ in found} == {"full model", packaged, "its subnet"}
    for key, one in found.items():
        if key[0] == packaged:
            assert one["value"] == pytest.approx(found["its subnet", *key[1:]]["value"], rel=0.02), key


def test_shots_limit_and_chat_reach_the_question(bitfleet: Any, supernet: Path, tasks: Path) -> None:
    line = ("evaluate", supernet, "--bits", 8, "--tasks", tasks / "words.yaml", "--json")
    few = of(bitfleet(*line, "--limit", 4))["8 bits", "words", "acc"]
    assert few["examples"] == 4
    shown = bitfleet(*line, "--limit", 2, "--shots", 3, "--chat")
    assert shown.code == 0 and "longer than the context of 128 tokens" in shown.err  # three examples are


def test_a_table_says_what_is_left(bitfleet: Any, supernet: Path, tasks: Path) -> None:
    lines = bitfleet("evaluate", supernet, "--tasks", tasks / "words.yaml").out.splitlines()
    assert lines[0].split("  ")[0] == "TASK" and lines[0].endswith("OF THE FULL MODEL'S, 95 %")
    rows = [line.split() for line in lines[1:-1]]
    assert [" ".join(row[3:5]) for row in rows] == ["full model", "2 bits", "8 bits"] * 2
    assert [row[1] for row in rows] == ["acc"] * 3 + ["acc_norm"] * 3
    assert " ± " in lines[1]


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("no-such.yaml", "no task file at no-such.yaml"),
        ("broken.yaml", "broken.yaml is no task file"),
        ("nameless.yaml", "a task file names its `task`"),
        ("lost.yaml", "must load with its data, it does not"),
        ("odd.yaml", "must load with its data, it does not"),
        ("wordless.yaml", "must ask its questions, it does not: UndefinedError"),
        ("late.yaml", "must ask its questions, it does not: TypeError"),
        ("empty.yaml", "does not: there are no questions in its data; correct the file, or lay its data beside it"),
        ("torn.yaml", "does not: ArrowInvalid: JSON parse error"),
        ("mistyped.yaml", "asks for 'acc_nrm'; near it: acc_norm"),
        ("unmeasured.yaml", "the metric_list of unmeasured.yaml is empty"),
        ("sampled.yaml", "must be the likeliest tokens, task sampled.yaml asks for do_sample"),
        ("arc_eazy", "one that lm-eval lists, got 'arc_eazy'; near it: arc_easy"),
        (",", "names a task or more"),
    ],
)
def test_what_cannot_run_is_refused_before_a_model_is_read(
    bitfleet: Any, supernet: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text("a: [")
    Path("nameless.yaml").write_text("a: 1")
    Path("lost.yaml").write_text(CHOICES.replace("words.jsonl", "gone.jsonl"))
    shutil.copy(tasks / "words.jsonl", "words.jsonl")
    Path("shots.jsonl").write_text(json.dumps({**QUESTIONS[0], "question": None}) + "\n")  # where a text is expected
    Path("empty.jsonl").touch()
    Path("torn.jsonl").write_text('{"question": ')
    choiceless = {**QUESTIONS[0], "choices": None}
    Path("late.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (*QUESTIONS, choiceless)))
    for name, text, old, new in (
        ("late", CHOICES, "words.jsonl", "late.jsonl"),
        ("empty", CHOICES, "words.jsonl", "empty.jsonl"),
        ("torn", CHOICES, "words.jsonl", "torn.jsonl"),
        ("mistyped", CHOICES, "acc_norm", "acc_nrm"),
        ("unmeasured", CHOICES, "metric_list: [{metric: acc}, {metric: acc_norm}]", "metric_list: []"),
        ("odd", CHOICES, "dataset_kwargs: {", "dataset_kwargs: data_files #"),
        ("wordless", CHOICES + "num_fewshot: 1\n", "{{question}}", "{{question.upper()}}"),
        ("sampled", ANSWERS, "max_gen_toks: 5", "do_sample: true"),
    ):
        Path(f"{name}.yaml").write_text(text.replace(old, new))
    monkeypatch.setattr("supernet.loading.load_model", lambda *a, **k: pytest.fail("a model was read"))
    done = bitfleet("evaluate", supernet, "--bits", 8, "--tasks", task)
    assert done.code == 2 and told in done.error


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("f1", "answers must be judged by the metrics of words, they are not: ValueError: Target is multiclass"),
        ("perplexity", "words gives none; take metrics that go with its output_type"),
    ],
)
def test_metrics_that_do_not_go_with_a_task_are_an_error_of_its_file(
    bitfleet: Any, supernet: Path, tasks: Path, tmp_path: Path, metric: str, told: str
) -> None:
    shutil.copytree(tasks, tmp_path, dirs_exist_ok=True)
    (tmp_path / "words.yaml").write_text(CHOICES.replace("{metric: acc}, {metric: acc_norm}", f"{{metric: {metric}}}"))
    done = bitfleet("evaluate", supernet, "--bits", 8, "--tasks", tmp_path / "words.yaml")
    assert done.code == 2 and told in done.error and done.out == ""


def test_options_that_do_not_belong_together_are_refused(bitfleet: Any, supernet: Path, tasks: Path) -> None:
    for options, told in (
        (("--limit", 3), "give --tasks NAME|FILE"),
        (("--tasks", tasks / "words.yaml", "--text", tasks / "words.yaml"), "exclude each other"),
    ):
        done = bitfleet("evaluate", supernet, *options)
        assert done.code == 2 and told in done.error


def test_without_the_full_model_nothing_is_compared(bitfleet: Any, supernet: Path, tasks: Path, tmp_path: Path) -> None:
    model = supernet.parent / "model"
    away = shutil.move(model, tmp_path / "away")
    try:
        done = bitfleet("evaluate", supernet, "--tasks", tasks / "words.yaml")
        assert done.code == 2 and "what the full model reaches needs the full model" in done.error
    finally:
        shutil.move(away, model)


def test_without_lm_eval_it_says_what_to_install(
    bitfleet: Any, supernet: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("records.installed.find_spec", lambda name: None if name == "lm_eval" else True)
    done = bitfleet("evaluate", supernet, "--tasks", tasks / "words.yaml")
    assert done.code == 4 and "pip install 'bitfleet[tasks]'" in done.error
