"""A step of several sequences through a mixture whose router prefers some experts: measured in llama.cpp, and planned.

    python benchmarks/experts.py --profile DEVICE.json [--repeats 5]

The profile is of this machine (`bitfleet profile device --out DEVICE.json`). Three mixtures have the same random
weights but for their routers: each expert has a lean of its own, from none to one by which most tokens choose the same
few. Shares are counted on one text of random tokens, and others are stepped through, one of each sequence at a time.
Planned with the counts, and as if all experts were as likely. How much fewer experts save depends on the machine: one
that reads faster than it multiplies is as slow with few.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from claims import Claim, finish, table
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from planner.latency import estimate_latency
from planner.request import Workload
from planner.runtimes.llamacpp import capi
from planner.runtimes.llamacpp.installed import library
from planner.runtimes.llamacpp.runtime import LlamaCpp
from planner.runtimes.llamacpp.serving import CHUNK_TOKENS, WEIGHTS
from planner.testing.models import save_tokenizer
from planner.testing.supernets import RoundedSupernet
from profiles.device import DeviceProfile
from supernet.experts import Experts
from supernet.model import removed_after
from supernet.space import Choice, Subnet

LAYERS, HIDDEN, CHANNELS, EXPERTS, VOCABULARY = 3, 1024, 2048, 16, 320
LEANS = (0.0, 3.0, 12.0)  # of the likeliest expert over the least likely, in standard deviations of a router's logit
BATCHES = (1, 2, 4, 8)
CONTEXT, PROMPT, STEPS = 256, 16, 24
COUNTED = (32, 64)  # windows, tokens
CHOICE = Choice(8, 32, "sym")
OFF = 0.1  # of as few steps


@dataclass(frozen=True)
class Row:
    lean: float
    batch: int
    drawn: float  # distinct experts a layer, of the very tokens that were stepped through
    expected: float
    measured_ms: float
    planned_ms: float
    evenly_ms: float  # planned as if all experts were as likely


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    device = DeviceProfile.load(given.profile)
    rows = [row for lean in LEANS for row in of_router(lean, device, given.repeats)]
    shown = [(f"{r.lean:g}", r.batch, f"{r.drawn:.2f}", f"{r.expected:.2f}", f"{r.measured_ms:.1f}",
              f"{r.planned_ms:.1f}", f"{r.evenly_ms:.1f}") for r in rows]  # fmt: skip
    table(("lean", "batch", "experts drawn", "expected", "measured ms", "planned ms", "planned evenly"), shown)
    off = max(abs(row.expected / row.drawn - 1) for row in rows)
    claim = Claim("experts that a step is expected to read, off those it reads, as a share", off, OFF)
    finish(__file__, [claim], rows=[asdict(row) for row in rows])


def of_router(lean: float, device: DeviceProfile, repeats: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        source, folder = Path(scratch) / "model", Path(scratch) / "package"
        save(source, lean)
        folder.mkdir()
        files, runtime = RoundedSupernet(source), LlamaCpp()
        draw = torch.Generator().manual_seed(1)
        counted, stepped = (torch.randint(3, 259, size, generator=draw) for size in (COUNTED, (8, PROMPT + STEPS)))
        counts = [chosen.sum((0, 1)).tolist() for chosen in routing(files.model, counted)]
        drawn = [chosen[:, PROMPT:] for chosen in routing(files.model, stepped)]
        spec = files.spec
        units = (u if u.chosen is None else replace(u, chosen_by=tuple(counts[u.layer or 0])) for u in spec.units)
        known = replace(spec, units=tuple(units))
        subnet = Subnet.of({unit.name: CHOICE for unit in spec.units})
        runtime.packages.write(files, subnet, Workload(CONTEXT, 8, PROMPT), device.threads, folder)
        del files
        found = []
        for batch in BATCHES:
            load = Workload(CONTEXT, batch, PROMPT)
            planned, evenly = (
                estimate_latency(runtime.pricing(one, load, device), subnet).tpot_ms for one in (known, spec)
            )
            distinct = sum(one[:batch].any(0).sum(-1).double().mean().item() for one in drawn) / LAYERS
            expected = sum(u.experts_read(batch) for u in known.units if u.role == "expert_up") / LAYERS
            took = step_ms(folder, stepped[:batch].tolist(), device.threads or 1, repeats)
            found.append(Row(lean, batch, distinct, expected, took, planned, evenly))
            print(found[-1], flush=True)
        return found


def save(folder: Path, lean: float) -> None:
    """The model: all its tokens have a direction in common, along which the router's rows differ by the lean."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "mixtral", vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=CHANNELS, num_hidden_layers=LAYERS,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=4096, num_local_experts=EXPERTS,
        num_experts_per_tok=2, sliding_window=None, tie_word_embeddings=False, output_router_logits=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    table = model.get_input_embeddings().weight
    table.copy_(0.5 + torch.randn(table.shape))
    for name, weight in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            own = torch.randn(weight.shape)
            own -= own.mean(1, keepdim=True)  # nothing of it along what all tokens have in common
            weight.copy_((own + 2 * lean * torch.linspace(1, 0, EXPERTS)[:, None] / HIDDEN**0.5) / HIDDEN**0.5)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def routing(model: Any, text: Tensor) -> list[Tensor]:
    """Of each layer which experts each token of `text` `(n, tokens)` chose, bool `(n, tokens, experts)`."""
    found = []

    def note(experts: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(torch.nn.functional.one_hot(args[1], EXPERTS).sum(1).bool().view(*text.shape, EXPERTS))

    hooks = [one.register_forward_pre_hook(note) for one in model.modules() if isinstance(one, Experts)]
    with removed_after(hooks), torch.no_grad():
        model(text)
    return found


def step_ms(folder: Path, sequences: Sequence[Sequence[int]], threads: int, repeats: int) -> float:
    """The fastest median time of a step, of so many repeats: whatever else the machine does only ever adds."""
    model = capi.Model(capi.Library(library()), folder / WEIGHTS)
    serving = capi.Context(model, CONTEXT, threads, "f16", CHUNK_TOKENS, len(sequences))
    best = float("inf")
    for _ in range(repeats):
        serving.clear()
        for number, ids in enumerate(sequences):
            serving.read(ids[:PROMPT], sequence=number)
        gaps = []
        for position in range(PROMPT, PROMPT + STEPS):
            started = time.perf_counter()
            serving.step([ids[position] for ids in sequences], position)
            for index in range(len(sequences)):
                serving.likeliest(index)
            gaps.append(1e3 * (time.perf_counter() - started))
        best = min(best, sorted(gaps)[STEPS // 2])
    serving.close()
    model.library.call("llama_model_free", model.handle)
    return best


if __name__ == "__main__":
    main()
