"""What a model of the 0.5B shape costs: seconds, CPU seconds and peak memory of every stage of a training and of what
comes after it.

    python benchmarks/half_billion.py [--minutes 10] [--layers 24] [--untied] [--commands train,evaluate,plan,export]

The shape of Qwen2-0.5B (24 layers, hidden size 896, 14 heads, 2 of them for keys and values, 4864 feed-forward
channels, a vocabulary of 151,936) with random weights in bfloat16, made on the spot: what it says is worth nothing,
what it costs is real. Every command runs in a process of its own. A training takes its minutes, evaluating and planning
about 2 minutes each, exporting one.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from claims import Claim, finish

SHAPE = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
}  # fmt: skip
COMMANDS = ("train", "evaluate", "plan", "export")
STAGE = re.compile(r"^\s*\d+ %  (?P<stage>[^,]+)")
MOST = {"train": (2.5, 1.5e9), "evaluate": (1.5, 0.7e9), "plan": (1.5, 0.7e9), "export": (1.5, 0.7e9)}
"""Times the bytes of the weights in bfloat16, and bytes beside them, that a command may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--untied", action="store_true", help="a head of its own")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--folder", type=Path, help="keep the model and the supernet here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        weights = make_model(folder / "model", given.layers, not given.untied)
        rows = []
        for name in given.commands.split(","):
            rows += measured(name, command(name, folder, given.minutes))
        print_rows(rows)
    wholes = {row["command"]: row for row in rows if row["stage"] == "whole"}
    finish(__file__, list(claims(wholes, weights, given.minutes)), layers=given.layers, tied=not given.untied,
           weights_bytes=weights, minutes=given.minutes, rows=rows)  # fmt: skip


def make_model(folder: Path, layers: int, tied: bool) -> int:
    """Write the model where it is not yet; the bytes of its weights."""
    if not folder.exists():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        config = AutoConfig.for_model("qwen2", **SHAPE, num_hidden_layers=layers, tie_word_embeddings=tied)
        config.eos_token_id = 257
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        save_tokenizer(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def save_tokenizer(folder: Path) -> None:
    """A token for every byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)} | {"<s>": 256, "</s>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>").save_pretrained(folder)


def command(name: str, folder: Path, minutes: float) -> list[str]:
    bitfleet = [sys.executable, str(Path(__file__).resolve().parent.parent / "cli.py")]
    supernet, plan = str(folder / "supernet"), str(folder / "plan.json")
    return (
        bitfleet
        + {
            "train": ["train", str(folder / "model"), "--minutes", f"{minutes:g}", "--out", supernet],
            "evaluate": ["evaluate", supernet],
            "plan": [
                "plan",
                supernet,
                "--device",
                "laptop-i5-1240p-8gb",
                "--context",
                "512",
                "--mem",
                "700MB",
                "--out",
                plan,
            ],
            "export": ["export", plan, "--out", str(folder / "package")],
        }[name]
    )


def measured(name: str, arguments: list[str], kill: Callable[[str], bool] = lambda line: False) -> list[dict[str, Any]]:
    """Run a command; a row for each stage that it says, by when it said so, and one for the whole. The first line that
    `kill` is true of ends it by SIGKILL."""
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    process, over, now = psutil.Process(child.pid), threading.Event(), {"stage": "start", "peak": 0, "cpu": 0.0}

    def watch() -> None:
        while not over.wait(0.1):
            try:
                now["peak"] = max(now["peak"], process.memory_info().rss)
                times = process.cpu_times()
                now["cpu"] = times.user + times.system
            except psutil.Error:
                return

    threading.Thread(target=watch, daemon=True).start()
    begun = {"seconds": started, "cpu": 0.0}

    def close(stage: str) -> None:
        seconds = time.perf_counter()
        rows.append({
            "command": name, "stage": now["stage"], "seconds": seconds - begun["seconds"],
            "cpu_seconds": now["cpu"] - begun["cpu"], "peak_bytes": now["peak"],
        })  # fmt: skip
        now.update(stage=stage, peak=0)
        begun.update(seconds=seconds, cpu=now["cpu"])

    assert child.stderr is not None
    killed = False
    for line in child.stderr:
        print(line.rstrip(), file=sys.stderr, flush=True)
        found = STAGE.match(line)
        if found and found["stage"] != now["stage"]:
            close(found["stage"])
        if not killed and kill(line):
            child.kill()
            killed = True
    _, status, usage = os.wait4(child.pid, 0)
    over.set()
    close("end")
    code = os.waitstatus_to_exitcode(status)
    if code != (-signal.SIGKILL if killed else 0):
        raise SystemExit(f"{name} ended with {code}")
    whole = {"seconds": time.perf_counter() - started, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    return [*rows, {"command": name, "stage": "whole", **whole, "peak_bytes": usage.ru_maxrss * 1024}]


def claims(wholes: dict[str, dict[str, Any]], weights: int, minutes: float) -> list[Claim]:
    found = []
    for name, row in wholes.items():
        times, beside = MOST[name]
        most = times * weights + beside
        what = f"{name}: peak memory, GB; {times:g} times the weights and {beside / 1e9:g} GB"
        found.append(Claim(what, row["peak_bytes"] / 1e9, most / 1e9))
    if "train" in wholes:
        off = abs(wholes["train"]["seconds"] / (60 * minutes) - 1)
        found.append(Claim(f"train --minutes {minutes:g} ends within 15 %: share that it is off by", off, 0.15))
    return found


def print_rows(rows: list[dict[str, Any]]) -> None:
    print(f"{'COMMAND':<10} {'STAGE':<24} {'SECONDS':>8} {'CPU s':>8} {'PEAK GB':>8}")
    for row in rows:
        seconds = f"{row['seconds']:8.1f} {row['cpu_seconds']:8.1f}"
        print(f"{row['command']:<10} {row['stage']:<24} {seconds} {row['peak_bytes'] / 1e9:8.2f}")


if __name__ == "__main__":
    main()
