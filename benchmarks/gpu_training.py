"""SmolLM2's full training on a GPU, in minutes of each stage with its KL; and one with ten times the steps.

KL is on the first 16 windows of 512 tokens of eval.txt, as in benchmarks/quality.py. What a longer training has room
for is taken from the time a step took in the first: where ten times the steps do not fit, as many as do.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpu_record import TINY, Record

from supernet.create import create
from supernet.evaluate import evaluate
from supernet.loading import load_model
from supernet.recipe import Recipe
from supernet.reference import Reference
from supernet.text import read_windows

BLOCK_STEPS, STEPS, LONGER = 128, 430, 10
MOST_MINUTES = 8.0  # of the first training
BITS = (2, 3, 4, 8)
WINDOWS, TOKENS = 16, 512
TRAINING = "train"  # how that stage's lines begin
OTHERS_S = 25.0  # what a longer training needs beside what the first took before its steps


def full(record: Record, source: str | None, text: Path) -> None:
    train(record, source, text, BLOCK_STEPS, STEPS)
    if record.on_gpu:
        record.add(targets={"minutes of the full training": (round(record.found["seconds"] / 60, 2), MOST_MINUTES)})


def long(record: Record, source: str | None, text: Path) -> None:
    """Within the time that is left, told by the first training's file."""
    before = json.loads(record.path.with_name("training.json").read_text(encoding="utf-8"))
    if "step_s" not in before:
        raise ValueError("the first training did not come to its end: how many steps fit is not known")
    stages, wanted = before["stages"], LONGER * before["steps"]
    rest = sum(seconds for name, seconds in stages.items() if not name.startswith(TRAINING)) + OTHERS_S
    fits = int((record.left_s - rest) / before["step_s"])
    if fits <= before["steps"]:
        raise ValueError(f"{record.left_s:.0f} s have room for {max(0, fits)} steps, and {before['steps']} are known")
    record.add(wanted_steps=wanted)
    train(record, source, text, before["block_steps"], min(fits, wanted))


def train(record: Record, source: str | None, text: Path, block_steps: int, steps: int) -> None:
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        train_in(Path(scratch), record, source, text, block_steps, steps)


def train_in(scratch: Path, record: Record, source: str | None, text: Path, block_steps: int, steps: int) -> None:
    started, out = time.monotonic(), scratch / "supernet"
    options: dict[str, Any] = {}
    if not record.on_gpu:
        block_steps, steps = 8, 4 if steps == STEPS else steps
        options = {"window_tokens": 32, "batch": 2, "group_size": 32}
    if source is None:
        source, text = tiny(scratch)
    stages: dict[str, float] = {}
    last = ["", started]

    def progress(what: str, done: int, total: int) -> None:
        name, now = what.split(",")[0], time.monotonic()
        stages[last[0]] = stages.get(last[0], 0.0) + now - last[1]
        if name != last[0]:  # a training that is ended says how far it came
            record.add(stages={stage: round(seconds, 3) for stage, seconds in stages.items() if stage})
        last[:] = name, now

    record.add(source=Path(source).name, block_steps=block_steps, steps=steps)
    record.forget_peak()
    recipe = Recipe(data=str(text / "train.txt"), block_steps=block_steps, steps=steps, quantizer="learned", **options)
    files = create(source, out, recipe, progress=progress)
    progress("", 1, 1)
    spent = sum(seconds for name, seconds in stages.items() if name.startswith(TRAINING))
    record.add(
        seconds=time.monotonic() - started,
        step_s=spent / steps,
        peak_bytes=record.peak_bytes(),
        made={key: files.info[key] for key in ("quantizer", "adapted_bits", "trial", "held_out", "learning_rate")},
        losses=[files.info["losses"][0], files.info["losses"][-1]],
    )
    model, tokenizer = measured_from(source)
    count, tokens = (WINDOWS, TOKENS) if record.on_gpu else (2, 32)
    model.to(record.device)
    reference = Reference.of(model, read_windows(str(text / "eval.txt"), tokenizer, count, tokens))
    supernet = files.load()
    supernet.model.to(record.device)
    found = evaluate(supernet, [files.space.uniform(files.spec, bits) for bits in BITS], reference)
    record.add(kl={str(bits): quality.to_json() for bits, quality in zip(BITS, found, strict=True)})


def measured_from(source: str) -> tuple[Any, Any]:
    loaded = load_model(source)
    return loaded.model, loaded.tokenizer


def tiny(folder: Path) -> tuple[str, Path]:
    """A model of random weights that knows bytes, and text: what there is to train without a model at hand."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model, text = folder / "tiny-model", folder / "tiny-text"
    text.mkdir()
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters | {"<s>": 256, "</s>": 257}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = TINY.model("cpu", torch.float32, hidden_size=64, intermediate_size=128, vocab_size=272, head_dim=16)
    made.config.bos_token_id, made.config.eos_token_id = 256, 257
    made.save_pretrained(model)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(model)
    for name in ("train.txt", "eval.txt"):
        (text / name).write_text("the quick brown fox jumps over the lazy dog. " * 400, encoding="utf-8")
    return str(model), text
