"""What making the supernet of a model that does not fit in memory takes: seconds, CPU seconds and peak memory of every
stage, of planning, of exporting for llama.cpp and ONNX Runtime, and of the first token there.

    python benchmarks/streaming.py [--layers 4] [--memory 6GB] [--minutes 1] [--commands train,plan,...] [--folder DIR]
                                   [--kill 2] [--tokens 16] [--quantizer rtn] [--repeat 32]

The shape of Llama-2-7B with random weights in bfloat16, made on the spot, a block at a time: what it says is worth
nothing, what it costs is real. A block is as wide as in the whole model, so peaks are those of the whole, but for what
grows with blocks (none that is held); times are for `--layers` of its 32. With few `--minutes` stages read the least
text. Every command runs in a process of its own. With `--kill N` the training is killed in the block after the first N
whose codes are there, and the next command goes on with it.

With `--tokens 16` windows are that short, for a slow machine: the weights are held as with long ones, and what blocks
read of 64 windows of 256 tokens adds three times 134 MB. With `--quantizer rtn` codes are rounded, without channel
scales: the quickest way to them. With `--repeat 32` what comes after the training is done with a supernet of so many
blocks, those that were made over and over (`benchmarks/repeated.py`).

    python benchmarks/streaming.py --same MODEL --data FILE

makes the supernet of MODEL twice, in memory and from its files, and compares them bit for bit.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from claims import Claim, finish
from half_billion import measured, print_rows, save_tokenizer
from repeated import repeat_blocks
from scale import SHAPES

SHAPE, BLOCKS = SHAPES["Llama-2-7B"], 32
PREPARING, REPEATED = "preparing", "repeated"
STD = 0.02  # of the weights
MOST_GB = {"train": 6.0, "train-killed": 6.0}  # of a command; the others may take what the target says of them all
OTHERS_GB = 24.0
SAME_BITS, SAME_TOKENS = (2, 8), 64  # of the comparison: whatever is read, it is the same or not
COMMANDS = ("train", "plan-llamacpp", "export-llamacpp", "run-llamacpp", "plan-onnxruntime", "export-onnxruntime",
            "run-onnxruntime")  # fmt: skip
SHORT = """
import json, sys
from pathlib import Path
from supernet.create import create
from supernet.recipe import Recipe

def report(what, done, total):
    print(f"{100 * done / total:3.0f} %  {what}", file=sys.stderr, flush=True)

model, out, recipe = sys.argv[1:]
create(model, Path(out), Recipe.from_json(json.loads(recipe)), resume=True, progress=report, streamed=True)
"""


@dataclass(frozen=True)
class Given:
    layers: int
    memory: str
    minutes: float
    data: Path
    commands: tuple[str, ...]
    tokens: int | None
    quantizer: str
    kill: int | None
    repeat: int | None

    @property
    def planned_layers(self) -> int:
        return self.repeat or self.layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--memory", default="6GB")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parent.parent / "LICENSE")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--tokens", type=int, metavar="N", help="windows of N tokens")
    parser.add_argument("--quantizer", default="gptq", choices=("gptq", "rtn"))
    parser.add_argument("--kill", type=int, metavar="N", help="kill the training once N blocks have their codes")
    parser.add_argument("--repeat", type=int, metavar="N", help="repeat the blocks up to N after the training")
    parser.add_argument("--folder", type=Path, help="keep the model and the supernet here")
    parser.add_argument("--same", metavar="MODEL", help="compare the two ways for this model instead")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if given.same:
            compare(given.same, given.data, folder)
        commands = tuple(given.commands.split(","))
        run(folder, Given(given.layers, given.memory, given.minutes, given.data, commands, given.tokens,
                          given.quantizer, given.kill, given.repeat))  # fmt: skip


def run(folder: Path, given: Given) -> None:
    weights = make_model(folder / "model", given.layers)
    rows = []
    if given.kill is not None:
        rows += measured("train-killed", command("train", folder, given), within_block(folder, given.kill))
    for name in given.commands:
        if given.repeat and name != "train" and not (folder / REPEATED).exists():
            repeat_blocks(folder / "supernet", folder / REPEATED, given.repeat)
        rows += measured(name, command(name, folder, given))
    print_rows(rows)
    wholes = {row["command"]: row for row in rows if row["stage"] == "whole"}
    claims = [
        Claim(f"{name}: peak memory, GB", row["peak_bytes"] / 1e9, MOST_GB.get(name, OTHERS_GB))
        for name, row in wholes.items()
    ]
    finish(__file__, claims, layers=given.layers, of_layers=BLOCKS, weights_bytes=weights, memory=given.memory,
           minutes=given.minutes, tokens=given.tokens, quantizer=given.quantizer, repeat=given.repeat,
           rows=rows)  # fmt: skip


def within_block(folder: Path, blocks: int) -> Callable[[str], bool]:
    """Whether a training, which just said a line, is well within the block after the first `blocks`, and the head."""
    said: list[str] = []

    def within(line: str) -> bool:
        found = len(list((folder / "supernet" / PREPARING).glob("codes-*.safetensors")))
        said.extend([line] if found == blocks + 1 else [])
        return len(said) > 1  # the first of them comes when that block begins

    return within


def make_model(folder: Path, layers: int) -> int:
    """Write the model where it is not yet, a file for each block; the bytes of its weights."""
    if not (folder / "config.json").exists():
        import torch
        from safetensors.torch import save_file
        from transformers import AutoConfig, AutoModelForCausalLM

        shape = {**SHAPE, "num_hidden_layers": layers}
        config = AutoConfig.for_model("llama", **shape, tie_word_embeddings=False, dtype="bfloat16")
        config.eos_token_id, config.bos_token_id = 257, 256
        config.architectures = ["LlamaForCausalLM"]
        with torch.device("meta"):
            shapes = {name: p.shape for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
        folder.mkdir(parents=True, exist_ok=True)
        generator, files = torch.Generator().manual_seed(0), {}
        for group in dict.fromkeys(_group(name) for name in shapes):
            tensors = {
                name: torch.ones(size) if len(size) == 1 else STD * torch.randn(size, generator=generator)
                for name, size in shapes.items()
                if _group(name) == group
            }
            file = f"model-{group}.safetensors"
            save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, folder / file)
            files |= dict.fromkeys(tensors, file)
        index = {"metadata": {}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        save_tokenizer(folder)
        config.save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _group(name: str) -> str:
    parts = name.split(".")
    return f"block-{int(parts[2]):03}" if parts[1] == "layers" else parts[-2]


def command(name: str, folder: Path, given: Given) -> list[str]:
    bitfleet = [sys.executable, str(Path(__file__).resolve().parent.parent / "cli.py")]
    what, _, runtime = name.partition("-")
    supernet, plan, package = (str(folder / f"{part}") for part in ("supernet", f"{runtime}.json", runtime))
    planned = str(folder / REPEATED) if given.repeat else supernet
    options = {
        "train": ["train", str(folder / "model"), "--quantizer", given.quantizer, "--bits", "2,4,8",
                  "--train-bits", "none", "--data", str(given.data), "--memory", given.memory,
                  "--minutes", f"{given.minutes:g}", "--resume", "--out", supernet],
        "plan": ["plan", planned, "--device", "laptop-i5-1240p-8gb", "--runtime", runtime, "--context", "512",
                 "--mem", f"{0.6 + 0.15 * given.planned_layers:.2f}GB", "--out", plan],
        "export": ["export", plan, "--out", package],
        "run": ["run", package, "The", "--max-tokens", "1"],
    }  # fmt: skip
    if what == "train" and given.tokens:
        recipe = {"bits": [2, 4, 8], "quantizer": given.quantizer, "train_bits": [], "data": str(given.data),
                  "steps": 1, "window_tokens": given.tokens}  # fmt: skip
        recipe |= {"awq": 0.0} if given.quantizer == "rtn" else {}
        return [sys.executable, "-c", SHORT, str(folder / "model"), supernet, json.dumps(recipe)]
    rounded = ["--awq", "0"] if what == "train" and given.quantizer == "rtn" else []
    return bitfleet + options[what] + rounded


def compare(model: str, data: Path, folder: Path) -> None:
    """End with 1 where the two supernets of `model` differ in a bit of anything but their date."""
    from supernet.create import create
    from supernet.recipe import Recipe
    from supernet.stages import measure as last_stage

    last_stage.SECONDS = math.inf  # where time is short the proof is cut, by the clock

    recipe = Recipe(bits=SAME_BITS, quantizer="gptq", train_bits=(), data=str(data), steps=1, window_tokens=SAME_TOKENS)
    found = [create(model, folder / name, recipe, streamed=name == "streamed") for name in ("whole", "streamed")]
    tables = [json.loads((files.path / "sensitivity.json").read_text())["units"] for files in found]
    infos = [{key: value for key, value in files.info.items() if key != "date"} for files in found]
    differ = [name for name in found[0].hashes if found[0].hashes[name] != found[1].hashes.get(name)]
    differ += [what for what, (a, b) in {"sensitivities": tables, "info": infos}.items() if a != b]
    print(f"differ: {', '.join(differ) or 'nothing'}, of {len(found[0].hashes)} files, sensitivities and losses")
    finish(__file__, [Claim("what differs of a streamed supernet", len(differ), 0)], hashes=dict(found[0].hashes))


if __name__ == "__main__":
    main()
