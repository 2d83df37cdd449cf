"""The paper's ablations, and one training against one for each bit-width: what each part of the training is worth.

    python benchmarks/ablations.py --text ../shared/text --steps 120 [--only sampler,cost,sharing]

Every row starts from the same GPTQ codes of SmolLM2-135M (2, 3 and 4 bits, groups of 64, the embedding at 8 bits, AWQ's
channel scales as in training) and takes the same steps on the same windows of train.txt; KL divergence per token from
the full model on windows of 512 tokens of eval.txt.

- sampler: trained scales, balanced against uniform and neighbours. The paper: uniform sampling is worse everywhere.
- cost: the joint training of N steps against a training of N steps for each bit-width, at the uniform points; and
  mixtures planned from the joint training's sensitivities against the same mixtures made of the layers of the separate
  trainings. The paper: mixing separately trained layers is worse.
- sharing: LoRA of rank 16 for each bit-width against one for all, of rank 16 (a third of the parameters) and of rank 48
  (as many). The paper: a shared one is worse at every budget.

Rows are written to --out as they come; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from claims import Claim, finish, table
from rival_tools import from_tensors
from rivals import code_bits

import cli
from planner.search.exact import solve
from supernet.adapters import ADAPTERS
from supernet.awq import channel_scales, rescale
from supernet.build import Supernet, build, make_space, quantize
from supernet.checkpoint import code_tensors
from supernet.create import CALIBRATION, ORDERING, READ
from supernet.evaluate import Reference, evaluate
from supernet.files import read_tensors, write_tensors, write_text
from supernet.model import DEFAULT_MODEL, in_compute_dtype, load_model, spec_of_model
from supernet.quantizers import GPTQ
from supernet.recipe import Recipe
from supernet.samplers import SAMPLERS
from supernet.sensitivity import measure_sensitivities
from supernet.sharing import SHARINGS
from supernet.space import Subnet
from supernet.text import read_windows, spread_windows
from supernet.train import Trainer, TrainOptions

BITS, GROUP, WINDOW, HELD_OUT, SENSITIVITY = (2, 3, 4), 64, 256, 4, 4
AVERAGES = (2.5, 3.0, 3.5)
NEAR = 1.05  # how near the joint training must come to separate ones
DEVICES = (1, 3, 10, 100)
PLANNING = Path(__file__).parent / "results" / "planning.json"  # seconds that one more device takes
Row = dict[str, Any]


class Setting:
    """The model, its text, the codes that every row starts from, and the rows so far."""

    def __init__(self, text: Path, work: Path, out: Path, steps: int, windows: int, seed: int) -> None:
        self.out, self.steps, self.seed = out, steps, seed
        self.model, tokenizer = load_model(DEFAULT_MODEL)
        self.spec = spec_of_model(self.model, DEFAULT_MODEL)
        self.space = make_space(self.spec, BITS, GROUP)
        drawn = spread_windows(str(text / "train.txt"), tokenizer, HELD_OUT + READ, WINDOW, seed)
        self.held_out, self.windows = Reference.of(self.model, drawn[:HELD_OUT]), drawn[HELD_OUT:]
        rescale(self.model, channel_scales(self.model, self.spec, self.windows[:ORDERING], Recipe().awq))
        path = work / f"gptq-awq-{seed}.safetensors"
        if not path.exists():
            work.mkdir(parents=True, exist_ok=True)
            found = quantize(self.model, self.spec, self.space, GPTQ(), self.windows[:CALIBRATION])
            write_tensors(path, code_tensors(found))
        self.codes = from_tensors(read_tensors(path)[0])
        eval_windows = read_windows(str(text / "eval.txt"), tokenizer, windows, 512)
        self.reference = Reference.of(self.model, eval_windows)
        self.teacher = in_compute_dtype(self.model)
        self.uniform = {bits: self.space.uniform(self.spec, bits) for bits in BITS}
        self.rows: list[Row] = json.loads(out.read_text())["rows"] if out.exists() else []

    def trained(
        self, sampler: str, bits: Sequence[int] = BITS, adapter: str = "scales", sharing: str = "decoupled",
        rank: int | None = None,
    ) -> tuple[Supernet, float]:  # fmt: skip
        """A supernet after the steps, and the seconds that they took."""
        supernet = build(self.model, self.spec, self.space, copy.deepcopy(self.codes))
        options = ADAPTERS[adapter].options(len(self.spec.units)) | ({} if rank is None else {"rank": rank})
        supernet.adapt(ADAPTERS[adapter], bits, self.seed, SHARINGS[sharing](), full=self.model, **options)
        supernet.set_dtype(self.teacher.dtype)
        settings = TrainOptions(self.steps, ADAPTERS[adapter].learning_rate, seed=self.seed, save_every=self.steps)
        with tempfile.TemporaryDirectory() as scratch:
            state, accelerator = Path(scratch) / "state", Accelerator()
            run = Trainer(self.teacher, supernet, self.windows, SAMPLERS[sampler](), settings, accelerator, state)
            started = time.perf_counter()
            run.run()
            seconds = time.perf_counter() - started
        supernet.fold()
        return supernet, seconds

    def row(self, group: str, name: str, supernet: Supernet, subnets: dict[str, Subnet], seconds: float) -> Row:
        found = evaluate(supernet, list(subnets.values()), self.reference)
        return self.add(group, name, {key: q.kl for key, q in zip(subnets, found, strict=True)}, seconds)

    def add(self, group: str, name: str, kl: dict[str, float], seconds: float) -> Row:
        row = {"group": group, "name": name, "steps": self.steps, "seed": self.seed, "kl": kl, "seconds": seconds}
        old = self.find(group, name)  # of a run that was stopped before the row that belongs with it
        self.rows = [*(r for r in self.rows if r is not old), row]
        write_text(self.out, json.dumps({"script": Path(__file__).name, "rows": self.rows}, indent=1) + "\n")
        print(f"{group}, {name}: {', '.join(f'{key}: {value:.4f}' for key, value in kl.items())}", flush=True)
        return row

    def find(self, group: str, name: str) -> Row | None:
        key = (group, name, self.steps, self.seed)
        return next((r for r in self.rows if (r["group"], r["name"], r["steps"], r["seed"]) == key), None)

    @property
    def points(self) -> dict[str, Subnet]:
        return {str(bits): subnet for bits, subnet in self.uniform.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/text"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--only", default="sampler,cost,sharing")
    parser.add_argument("--work", type=Path, default=cli.cache_dir() / "ablations", help="where codes are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ablations.json")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    setting = Setting(
        arguments.text, arguments.work, arguments.out, arguments.steps, arguments.windows, arguments.seed
    )  # fmt: skip
    wanted = arguments.only.split(",")
    if "cost" in wanted:
        one_against_many(setting)
    if "sampler" in wanted:
        samplers(setting)
    if "sharing" in wanted:
        sharings(setting)
    print_rows(setting.rows)
    print_costs(setting.rows)
    finish(__file__, list(claims(setting.rows)), rows=setting.rows)


def samplers(setting: Setting) -> None:
    for name in ("balanced", "uniform", "neighbours"):
        if setting.find("sampler", name) is not None:
            continue
        joint = setting.find("cost", "joint") if name == "neighbours" else None  # the same training
        if joint is not None:
            setting.add("sampler", name, {point: joint["kl"][point] for point in setting.points}, joint["seconds"])
        else:
            supernet, seconds = setting.trained(name)
            setting.row("sampler", name, supernet, setting.points, seconds)


def one_against_many(setting: Setting) -> None:
    """The joint training, a training for each bit-width, and mixtures of both."""
    if setting.find("cost", "separate") is not None:
        return
    joint, seconds = setting.trained("neighbours")
    windows = setting.windows[:SENSITIVITY]
    losses, _ = measure_sensitivities(setting.model, joint, windows, setting.held_out, setting.seed)
    limits = {f"planned {average:g}": code_bits(setting.spec, setting.space, average) for average in AVERAGES}
    solved = {name: solve(setting.space, losses, (limit,))[0] for name, limit in limits.items()}
    subnets = setting.points | {name: subnet for name, subnet in solved.items() if subnet is not None}
    setting.row("cost", "joint", joint, subnets, seconds)
    codes, total = joint.weights(), 0.0
    for bits in BITS:
        supernet, seconds = setting.trained("uniform", (bits,))
        total += seconds
        for name, choices in supernet.weights().items():
            codes[name] = {c: choices[c] if c.bits == bits else old for c, old in codes[name].items()}
    setting.row("cost", "separate", build(setting.model, setting.spec, setting.space, codes), subnets, total)


def sharings(setting: Setting) -> None:
    for name, sharing, rank in (
        ("decoupled, rank 16", "decoupled", 16), ("shared, rank 16", "shared", 16), ("shared, rank 48", "shared", 48),
    ):  # fmt: skip
        if setting.find("sharing", name) is None:
            supernet, seconds = setting.trained("balanced", adapter="lora", sharing=sharing, rank=rank)
            setting.row("sharing", name, supernet, setting.points, seconds)


def claims(rows: Sequence[Row]) -> Iterator[Claim]:
    """Of every pair of rows that took the same steps from the same seed."""
    for steps, seed in sorted({(r["steps"], r["seed"]) for r in rows}):
        same = {(r["group"], r["name"]): r["kl"] for r in rows if (r["steps"], r["seed"]) == (steps, seed)}
        for claim in compared(same):
            yield replace(claim, claim=f"{steps} steps, seed {seed}, {claim.claim}")


def compared(rows: dict[tuple[str, str], dict[str, float]]) -> Iterator[Claim]:
    pairs = [
        ("sampler", "balanced", "uniform", ("2", "4"), 1.0),
        ("cost", "joint", "separate", ("2", "3", "4"), NEAR),
        ("cost", "joint", "separate", tuple(f"planned {average:g}" for average in AVERAGES), 1.0),
        ("sharing", "decoupled, rank 16", "shared, rank 16", ("2", "3", "4"), 1.0),
        ("sharing", "decoupled, rank 16", "shared, rank 48", ("2", "3", "4"), 1.0),
    ]
    for group, ours, theirs, points, target in pairs:
        if (group, ours) in rows and (group, theirs) in rows:
            for point in points:
                if point in rows[group, ours]:  # a mixture that the space does not have is not there
                    ratio = rows[group, ours][point] / rows[group, theirs][point]
                    yield Claim(f"{point}: KL of {ours} / {theirs}", ratio, target)


def print_rows(rows: list[Row]) -> None:
    points = list(dict.fromkeys(point for row in rows for point in row["kl"]))
    cells = []
    for r in rows:
        found = (f"{r['kl'][p]:.4f}" if p in r["kl"] else "-" for p in points)
        cells.append((f"{r['group']}: {r['name']}, {r['steps']} steps", *found, f"{r['seconds']:.0f}"))
    table(("", *points, "seconds"), cells)


def print_costs(rows: Sequence[Row]) -> None:
    """Minutes for a number of devices, each with bits of its own: one joint training and a plan for each device,
    against a training for each, from the longest joint training and the separate ones of as many steps."""
    steps = max((r["steps"] for r in rows if r["name"] == "separate"), default=0)
    seconds = {r["name"]: r["seconds"] for r in rows if r["group"] == "cost" and r["steps"] == steps}
    if not seconds or not PLANNING.exists():
        return
    plan = json.loads(PLANNING.read_text())["claims"][0]["value"]
    each = seconds["separate"] / len(BITS)
    cells = [(n, f"{(seconds['joint'] + n * plan) / 60:.1f}", f"{n * each / 60:.1f}") for n in DEVICES]
    table(("devices", "minutes of one supernet and its plans", "minutes of a training for each"), cells)


if __name__ == "__main__":
    main()
