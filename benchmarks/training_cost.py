"""What a training step of the supernet costs, teacher included, beside a plain PEFT LoRA step on the full model.

    python benchmarks/training_cost.py [--model MODEL] [--adapter scales]
    python benchmarks/training_cost.py --random-weights CONFIG   # a folder with a config.json: no weights are read

Supernet: one subnet a step of the balanced sampler, at 2 or 3 bits; the full model's forward pass, the subnet's forward
and backward, AdamW on the sampled adapters. As in `bitfleet train`, teacher and supernet compute in bfloat16 where the
device multiplies in it and in float32 elsewhere, without autocast; scales and adapters are float32.

LoRA: PEFT's defaults at rank 16 on all linears, AdamW, the causal-LM loss that the model itself computes on the same
tokens; no autocast. Once with the model in float32, once in bfloat16; PEFT keeps its adapters in float32 in both.

Seconds: all take turns in one process, and the median of the repeats counts. Memory: each in a process of its own that
does nothing else. On a GPU it is what torch allocated at the peak of a step, model included; elsewhere the process's
peak resident memory while it steps, less what it held after its imports (Linux). Tokens are random: no step's cost
depends on them. Codes are rounded to nearest, for the same reason.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from claims import Claim, finish, table
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from supernet.adapters import ADAPTERS
from supernet.build import build
from supernet.choices import make_space
from supernet.loading import DEFAULT_MODEL, load_model
from supernet.model import compute_dtype, spec_of_model
from supernet.quantize import quantize
from supernet.quantizers import RTN
from supernet.recipe import Recipe
from supernet.samplers import Balanced
from supernet.sharing import SHARINGS
from supernet.train import Trainer, TrainOptions

RANK = 16
STEPS = 1000  # of the training that the supernet's steps are taken from
TIME, MEMORY = 2.0, 1.5
SUPERNET = "supernet"
DTYPES = {"LoRA, float32": torch.float32, "LoRA, bfloat16": torch.bfloat16}
Step = Callable[[int], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a Hugging Face folder, a .gguf file or a hub id")
    parser.add_argument("--random-weights", metavar="CONFIG", help="a model of this config, its weights drawn")
    parser.add_argument("--adapter", default="scales", choices=ADAPTERS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a window")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--gradient-checkpointing", action="store_true", help="of the supernet alone")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory-of", choices=(SUPERNET, *DTYPES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(peak_bytes(arguments.memory_of, arguments)))
        return
    seconds = timed({name: steps_of(name, arguments) for name in (SUPERNET, *DTYPES)}, arguments)
    memory = {name: memory_of(name) for name in seconds}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    dtype = str(compute_dtype(torch.device(arguments.device))).removeprefix("torch.")
    speed = {name: arguments.batch * arguments.tokens / value for name, value in medians.items()}
    rows = [
        (f"{name}, {dtype}" if name == SUPERNET else name, f"{medians[name]:.3f}", f"{min(seconds[name]):.3f}",
         f"{speed[name]:.0f}", f"{memory[name] / 1e6:.0f}")
        for name in seconds
    ]  # fmt: skip
    table(("a step", "seconds, median", "fastest", "tokens/s", "peak MB"), rows)
    evidence = {
        "dtype": dtype,
        "seconds": seconds,
        "tokens_per_s": speed,
        "peak_bytes": memory,
        "accelerator": accelerator_name(arguments),
    }
    finish(__file__, list(claims(medians, memory)), **evidence)


def claims(seconds: dict[str, float], memory: dict[str, int]) -> Any:
    for name in DTYPES:
        yield Claim(f"seconds of a step, teacher included / {name}", seconds[SUPERNET] / seconds[name], TIME)
        yield Claim(f"peak memory of a step, teacher included / {name}", memory[SUPERNET] / memory[name], MEMORY)


def full_model(arguments: argparse.Namespace) -> Any:
    """In float32, frozen, in eval mode."""
    if arguments.random_weights is None:
        model = load_model(arguments.model).model
        return model.to(arguments.device)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(arguments.random_weights)
    with torch.device(arguments.device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)


def batch_of(model: Any, arguments: argparse.Namespace) -> torch.Tensor:
    shape = (arguments.batch, arguments.tokens)
    return torch.randint(model.config.get_text_config().vocab_size, shape, generator=torch.Generator().manual_seed(0))


def steps_of(name: str, arguments: argparse.Namespace) -> Step:
    """A function that does step number n."""
    model = full_model(arguments)
    return supernet_steps(model, arguments) if name == SUPERNET else lora_steps(model, DTYPES[name], arguments)


def supernet_steps(model: Any, arguments: argparse.Namespace) -> Step:
    recipe = Recipe(adapter=arguments.adapter, group_size=arguments.group_size, sharing=sharing_of(arguments.adapter))
    spec = spec_of_model(model, arguments.model)
    space = make_space(spec, recipe.bits, recipe.sizes(), grid=recipe.grid)
    supernet = build(model, spec, space, quantize(model, spec, space, RTN(), batch_of(model, arguments)))
    adapter = ADAPTERS[recipe.adapter]
    sharing = SHARINGS[recipe.sharing]()
    supernet.adapt(adapter, recipe.adapted_bits, 0, sharing, full=model, **recipe.adapter_options(len(spec.units)))
    model.to(compute_dtype(model.device))
    supernet.model.to(model.device)
    supernet.set_dtype(model.dtype)
    options = TrainOptions(
        STEPS, adapter.learning_rate, arguments.batch, checkpointing=arguments.gradient_checkpointing
    )
    accelerator = Accelerator(cpu=arguments.device == "cpu")
    windows = batch_of(model, arguments)
    return Trainer(model, supernet, windows, Balanced(), options, accelerator, Path("unwritten")).step


def sharing_of(adapter: str) -> str:
    return "shared" if ADAPTERS[adapter].routes else "decoupled"


def lora_steps(model: Any, dtype: torch.dtype, arguments: argparse.Namespace) -> Step:
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model.to(dtype), config)
    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    ids = batch_of(model, arguments).to(arguments.device)

    def step(number: int) -> None:
        adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(steps: dict[str, Step], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of steps all over a training, after one of each that makes what lasts."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(arguments.repeats + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step(STEPS * number // (arguments.repeats + 1))
            if arguments.device != "cpu":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def memory_of(name: str) -> int:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def peak_bytes(name: str, arguments: argparse.Namespace) -> int:
    """Steps at both ends of the sampler's sweep, so that every adapter has its optimizer state."""
    imported = psutil.Process().memory_info().rss
    step = steps_of(name, arguments)
    gc.collect()
    cuda = arguments.device != "cpu"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        forget_peak()
    for number in (0, 2 * STEPS // 5, 0, 2 * STEPS // 5):  # the largest subnet, the smallest, and both once more
        step(number)
    return torch.cuda.max_memory_allocated() if cuda else peak_resident_bytes() - imported


def forget_peak() -> None:
    """Linux: from here on the peak of the resident memory counts anew; pages that were freed go back first."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def accelerator_name(arguments: argparse.Namespace) -> str | None:
    return None if arguments.device == "cpu" else torch.cuda.get_device_name()


if __name__ == "__main__":
    main()
