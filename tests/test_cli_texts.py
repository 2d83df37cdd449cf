"""What subnets are measured on: text kept by the supernet, and the user's own, from the command line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from supernet.checkpoint import open_supernet
from supernet.create import create
from supernet.recipe import Recipe
from tests.tiny import TEXT, save_tiny, tiny_tokenizer

DEVICE = "laptop-i5-1240p-8gb"
PLAN = ("--mem", "200MB", "--context", 128, "--device", DEVICE, "--trials", 5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose texts begin with <s>."""
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    tiny_tokenizer("<s> $A </s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def supernet(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from texts that were named as seen from another folder."""
    folder = tmp_path_factory.mktemp("supernet")
    (folder / "train.txt").write_text(TEXT * 4)
    (folder / "own.jsonl").write_text(json.dumps({"text": TEXT.upper()}) + "\n")
    data, own = (os.path.relpath(folder / name) for name in ("train.txt", "own.jsonl"))
    recipe = Recipe(
        (2, 4, 8), group_size=16, quantizer="rtn", awq=0.0, steps=1, batch=1, window_tokens=16, data=data, eval_text=own
    )
    create(str(model), folder / "net", recipe)
    return folder / "net"


def test_a_supernet_keeps_what_the_full_model_says_of_three_texts(supernet: Path) -> None:
    files = open_supernet(supernet)
    references = files.references()
    assert list(references) == ["held-out", "Python manual", "own.jsonl"]
    assert [len(reference.windows) for reference in references.values()] == [4, 4, 8]
    for name, reference in references.items():
        assert reference.windows[:, 0].tolist() == [256] * len(reference.windows)
        assert reference.first == 1
        assert files.info["texts"][name] == reference.to_json()
    assert references["held-out"].text == str((supernet.parent / "train.txt").resolve())
    assert references["own.jsonl"].text == str((supernet.parent / "own.jsonl").resolve())
    assert tiny_tokenizer().decode(references["own.jsonl"].windows[0, 1:]) in TEXT.upper()


def test_plans_are_measured_on_all_of_them_and_on_the_users_own(
    bitfleet: Any, supernet: Path, model: Path, tmp_path: Path
) -> None:
    own = tmp_path / "mine.txt"
    own.write_text(TEXT[::-1])
    out = tmp_path / "plan.json"
    done = bitfleet("plan", supernet, *PLAN, "--out", out, "--text", own)
    assert done.code == 0, done.err
    names = ["held-out", "Python manual", "own.jsonl", "mine.txt"]
    for name in names:
        assert f"KL, {name}" in done.out
    assert f"mine.txt ({own}), 8 windows, 112 tokens: KL" in done.out
    measured = json.loads(out.read_text())["compared"][0]["measured"]
    assert list(measured["texts"]) == names
    assert measured["kl"] == pytest.approx(sum(text["kl"] for text in measured["texts"].values()) / 4)
    kept = json.loads((supernet / "evaluations.json").read_text())
    assert len(kept) == 4  # a text each

    away = shutil.move(model, tmp_path / "away")
    try:
        again = bitfleet("plan", supernet, *PLAN, "--out", out, "--text", own)
        assert again.code == 2
        assert "text of your own needs the full model" in again.error
        assert "--eval FILE" in again.error
        assert bitfleet("plan", supernet, *PLAN, "--out", out).code == 0
    finally:
        shutil.move(away, model)


def test_evaluate_shows_the_full_model_on_every_text(bitfleet: Any, supernet: Path, tmp_path: Path) -> None:
    (row,) = json.loads(bitfleet("evaluate", supernet, "--bits", 8, "--json").out)
    for quality in row["texts"].values():
        assert quality["full_perplexity"] == pytest.approx(quality["perplexity"], rel=0.05)
    (tmp_path / "mine.md").write_text(TEXT)
    line = ("evaluate", supernet, "--bits", 8, "--text", tmp_path / "mine.md", "--windows", 3, "--window-tokens", 24)
    (row,) = json.loads(bitfleet(*line, "--json").out)
    assert (row["texts"]["mine.md"]["windows"], row["texts"]["mine.md"]["tokens"]) == (3, 66)
    shown = bitfleet(*line).out.splitlines()
    assert shown[0].split("  ") == ["mine.md: 3 windows, 66 tokens", "FULL MODEL", "8 bits"]
    said = {line[: line.index("  ")]: line.split("  ")[-1].strip() for line in shown[1:-2]}
    quality = row["texts"]["mine.md"]
    assert said["KL, median"] == f"{quality['statistics']['kl_percentiles']['50']:.4g}"
    assert said["perplexity / full model's"].startswith(f"{quality['statistics']['ratio']:.4g} ± ")
    assert "95 % by how windows differ" in shown[-1]


def test_several_texts_are_evaluated_with_the_model_read_once(
    bitfleet: Any, supernet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import commands.measuring as measuring

    (tmp_path / "prose.md").write_text(TEXT)
    (tmp_path / "shout.md").write_text(TEXT.upper())
    reads, read = [], measuring.full_model
    monkeypatch.setattr(measuring, "full_model", lambda *asked: reads.append(1) or read(*asked))
    options = ("evaluate", supernet, "--bits", 2, "--windows", 3, "--window-tokens", 24, "--json")
    both = [part for name in ("prose.md", "shout.md") for part in ("--text", tmp_path / name)]
    (together,) = json.loads(bitfleet(*options, *both).out)
    assert list(together["texts"]) == ["prose.md", "shout.md"] and len(reads) == 1
    (alone,) = json.loads(bitfleet(*options, *both[2:]).out)
    assert together["texts"]["shout.md"]["kl"] == pytest.approx(alone["kl"], rel=1e-4)
    same = bitfleet(*options, *both[:2], *both[:2])
    assert same.code == 2 and "told apart by the names of their files" in same.error


def test_a_supernet_that_names_no_text_is_refused(bitfleet: Any, supernet: Path, tmp_path: Path) -> None:
    shutil.copytree(supernet, tmp_path / "net")
    index = json.loads((tmp_path / "net" / "supernet.json").read_text())
    for texts, told in (({}, "names no text to measure on"), ({"held-out": {"digest": 3}}, "texts")):
        index["info"]["texts"] = texts
        (tmp_path / "net" / "supernet.json").write_text(json.dumps(index))
        done = bitfleet("plan", tmp_path / "net", *PLAN, "--out", tmp_path / "plan.json")
        assert done.code == 2
        assert told in done.error


def test_standard_input_is_read_once(bitfleet: Any, model: Path, tmp_path: Path) -> None:
    done = bitfleet("train", model, "--data", "-", "--eval", "-", "--out", tmp_path / "net")
    assert done.code == 2
    assert "standard input can be read once" in done.error


@pytest.mark.parametrize("option", ["--data", "--eval"])
@pytest.mark.parametrize("name", ["array.json", "table.csv", "none.txt", "."])
def test_what_is_no_text_is_refused_before_the_work(
    bitfleet: Any, model: Path, tmp_path: Path, option: str, name: str
) -> None:
    for made in ("array.json", "table.csv"):
        (tmp_path / made).write_text("[]")
    done = bitfleet("train", model, option, tmp_path / name, "--out", tmp_path / "net")
    assert done.code == 2
    assert "text is read from .txt, .md, .jsonl and .ndjson files" in done.error
    assert not (tmp_path / "net").exists()
