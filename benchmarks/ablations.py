"""Every method of training in one comparison, and one training against one for each bit-width.

    python benchmarks/ablations.py --text ../shared/text --steps 60 [--only sampler,adapter,sharing,system,cost,pruning]
    python benchmarks/ablations.py --text ../shared/text --steps 60 --seed 1 --only sampler --methods balanced uniform

Every row starts from the same GPTQ codes of SmolLM2-135M (2, 3 and 4 bits, groups of 64, the embedding at 8 bits, AWQ's
channel scales as in training) and takes the same steps on the same windows of train.txt, with adapters at all three
bit-widths; KL divergence per token from the full model on windows of 512 tokens of eval.txt. Systems that train several
subnets a step take so many fewer steps that they cost as much.

- sampler: trained scales; balanced against uniform. The paper of LLM-QFA: uniform sampling is worse everywhere.
- adapter: every member with the balanced sampler.
- sharing: LoRA of rank 16 for each bit-width against one for all, of rank 16 (a third of the parameters) and of rank 48
  (as many), and against sharing by gradient matching. The paper of LLM-QFA: a shared one is worse at every budget.
- system: Once-for-All's schedule, and DepS.
- cost: the joint training of N steps against a training of N steps for each bit-width, at the uniform points; and
  mixtures planned from the joint training's sensitivities against the same mixtures made of the layers of the separate
  trainings. The paper: mixing separately trained layers is worse.
- pruning: SuperTickets. Channels are put in order first, so these codes are others; before and after the steps.

Codes and rows are written to --work as they come; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from claims import Claim, finish, table
from mixtures import code_bits
from rival_tools import from_tensors
from training import train

from planner.search.program import solve
from records.atomic import write_text
from records.cache import cache_dir
from supernet.adapters import ADAPTERS
from supernet.agreement import measure_agreement
from supernet.awq import channel_scales, rescale
from supernet.build import Supernet, build
from supernet.choices import kept_channels, make_space
from supernet.evaluate import Reference, evaluate
from supernet.files import read_tensors, write_tensors
from supernet.loading import DEFAULT_MODEL, load_model
from supernet.model import in_compute_dtype, spec_of_model
from supernet.pruning import channel_order, reorder
from supernet.quantize import quantize
from supernet.quantizers import GPTQ
from supernet.recipe import Recipe
from supernet.sensitivity import measure_sensitivities
from supernet.sharing import SHARINGS, Agreement, Shared
from supernet.shelf import code_tensors
from supernet.space import Subnet
from supernet.stages.amounts import CALIBRATION, ORDERING, READ
from supernet.text import read_windows, spread_windows
from supernet.train import TrainOptions, adapter_parameters, passes
from supernet.trained import AGREEMENT

BITS, GROUP, WINDOW, HELD_OUT, SENSITIVITY = (2, 3, 4), 64, 256, 4, 4
AVERAGES = (2.5, 3.0, 3.5)
SHARES = (0.75, 0.5)  # of a feed-forward block's channels
NEAR = 1.05  # how near the joint training must come to separate ones
DEVICES = (1, 3, 10, 100)
PLANNING = Path(__file__).parent / "results" / "planning.json"  # seconds that one more device takes
Row = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A training: the members of its families, and `share` of the steps, where one costs more than others'."""

    sampler: str = "balanced"
    schedule: str = "constant"
    teacher: str = "full"
    adapter: str = "scales"
    sharing: str = "decoupled"
    rank: int | None = None
    bits: tuple[int, ...] = BITS
    share: float = 1.0


LORA = Method(adapter="lora", rank=16)
METHODS: dict[str, dict[str, Method]] = {
    "sampler": {
        "balanced": Method(),
        "uniform": Method("uniform"),
        "neighbours": Method("neighbours"),
        "slimmable": Method("slimmable", share=passes(1) / passes(3)),
        "planned": Method("planned", share=passes(1) / passes(4)),
        "sandwich": Method("sandwich", share=passes(1) / passes(4)),
        "shift": Method("shift"),
    },
    "adapter": {
        "scales": Method(),
        "lora, rank 16": LORA,
        "pooled": Method(adapter="pooled"),
        "rounding": Method(adapter="rounding"),
        "routed": Method(adapter="routed", sharing="shared"),
    },
    "sharing": {
        "decoupled, rank 16": LORA,
        "shared, rank 16": replace(LORA, sharing="shared"),
        "shared, rank 48": replace(LORA, sharing="shared", rank=48),
        "matched, rank 16": replace(LORA, sharing="matched"),
    },
    "system": {
        "progressive": Method(schedule="progressive"),
        # half of its steps train the largest subnet alone
        "DepS": Method("sandwich", "delayed", "largest", share=2 * passes(1) / (passes(1) + passes(4))),
    },
    "cost": {"joint": Method("neighbours")},
}


@dataclass(frozen=True)
class Run:
    """A trained supernet, the seconds of its steps, and how many parameters they trained."""

    supernet: Supernet
    seconds: float
    parameters: int


class Setting:
    """The model, its text, the codes that every row starts from, and the rows so far."""

    def __init__(
        self, text: Path, work: Path, steps: int, windows: int, seed: int, prune: Sequence[float] = ()
    ) -> None:
        self.out, self.steps, self.seed = work / "rows.json", steps, seed
        full = load_model(DEFAULT_MODEL)
        self.model, tokenizer = full.model, full.tokenizer
        self.spec = spec_of_model(self.model, DEFAULT_MODEL)
        self.space = make_space(self.spec, BITS, GROUP, prune, grid="int")
        drawn = spread_windows(str(text / "train.txt"), tokenizer, HELD_OUT + READ, WINDOW, seed)
        self.held_out, self.windows = Reference.of(self.model, drawn[:HELD_OUT]), drawn[HELD_OUT:]
        if prune:
            reorder(self.model, self.spec, channel_order(self.model, self.spec, self.windows[:ORDERING], seed))
        rescale(self.model, channel_scales(self.model, self.spec, self.windows[:ORDERING], Recipe().awq))
        path = work / f"gptq-awq-{'ordered-' if prune else ''}{seed}.safetensors"
        if not path.exists():
            work.mkdir(parents=True, exist_ok=True)
            found = quantize(self.model, self.spec, self.space, GPTQ(), self.windows[:CALIBRATION])
            write_tensors(path, code_tensors(found))
        self.codes = from_tensors(read_tensors(path)[0])
        eval_windows = read_windows(str(text / "eval.txt"), tokenizer, windows, 512)
        self.reference = Reference.of(self.model, eval_windows)
        self.teacher = in_compute_dtype(self.model)
        self.uniform = {bits: self.space.uniform(self.spec, bits) for bits in BITS}
        self.rows: list[Row] = json.loads(self.out.read_text())["rows"] if self.out.exists() else []

    def untrained(self) -> Supernet:
        return build(self.model, self.spec, self.space, copy.deepcopy(self.codes))

    def trained(self, method: Method) -> Run:
        supernet, adapter = self.untrained(), ADAPTERS[method.adapter]
        steps = max(1, round(self.steps * method.share))
        shape = adapter.options(len(self.spec.units)) | ({} if method.rank is None else {"rank": method.rank})
        agreement = self.agreement(supernet, method, shape)
        supernet.adapt(adapter, method.bits, self.seed, SHARINGS[method.sharing](), agreement, self.model, **shape)
        parameters = {id(parameter): parameter.numel() for parameter in adapter_parameters(supernet).values()}
        options = TrainOptions(steps, adapter.learning_rate, seed=self.seed, save_every=steps, teacher=method.teacher)
        seconds = train(self.teacher, supernet, self.windows, options, method.sampler, method.schedule)
        return Run(supernet, seconds, sum(parameters.values()))

    def agreement(self, supernet: Supernet, method: Method, shape: dict[str, Any]) -> dict[str, Agreement]:
        """How bit-widths agree on a shared adapter, where the sharing asks; as in training."""
        if not SHARINGS[method.sharing].measures:
            return {}
        supernet.adapt(ADAPTERS[method.adapter], method.bits, self.seed, Shared(), full=self.model, **shape)
        supernet.set_dtype(self.teacher.dtype)
        batches = self.windows[: AGREEMENT * Recipe().batch].split(Recipe().batch)
        return measure_agreement(self.teacher, supernet, method.bits, batches)

    def row(self, group: str, name: str, run: Run, subnets: dict[str, Subnet]) -> Row:
        found = evaluate(run.supernet, list(subnets.values()), self.reference)
        kl = {key: quality.kl for key, quality in zip(subnets, found, strict=True)}
        return self.add(group, name, kl, run.seconds, run.parameters)

    def add(self, group: str, name: str, kl: dict[str, float], seconds: float, parameters: int) -> Row:
        row = {"group": group, "name": name, "steps": self.steps, "seed": self.seed, "kl": kl, "seconds": seconds}
        row["parameters"] = parameters
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
    parser.add_argument("--only", default=",".join((*METHODS, "pruning")))
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="of these groups; by default all of theirs")
    parser.add_argument("--work", type=Path, default=cache_dir() / "ablations", help="keeps codes and rows")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if not set(wanted) <= {*METHODS, "pruning"}:
        parser.error(f"--only takes {', '.join(METHODS)} and pruning, got {arguments.only}")
    known = [name for group in wanted for name in METHODS.get(group, ())]
    if not set(arguments.methods or ()) <= set(known):
        parser.error(f"--methods takes {', '.join(known)}, got {', '.join(arguments.methods)}")
    given = (arguments.text, arguments.work, arguments.steps, arguments.windows, arguments.seed)
    setting = Setting(*given)
    if setting.find("codes", "GPTQ") is None:
        setting.row("codes", "GPTQ", Run(setting.untrained(), 0.0, 0), setting.points)
    if "cost" in wanted:
        one_against_many(setting)
    for group, methods in METHODS.items():
        if group in wanted and group != "cost":
            for name, method in methods.items():
                if arguments.methods is None or name in arguments.methods:
                    compare(setting, group, name, method)
    if "pruning" in wanted:
        setting = Setting(*given, prune=SHARES)
        pruned(setting)
    print_rows(setting.rows)
    print_costs(setting.rows)
    finish(__file__, list(claims(setting.rows)), rows=setting.rows)


def compare(setting: Setting, group: str, name: str, method: Method) -> None:
    """A row of the method, or a copy of one that another group has of the same training."""
    if setting.find(group, name) is not None:
        return
    twins = ((g, n) for g, methods in METHODS.items() for n, other in methods.items() if other == method)
    known = next((row for twin in twins if (row := setting.find(*twin)) is not None), None)
    if known is None:
        setting.row(group, name, setting.trained(method), setting.points)
    else:
        kl = {point: known["kl"][point] for point in setting.points}
        setting.add(group, name, kl, known["seconds"], known["parameters"])


def pruned(setting: Setting) -> None:
    """Whole subnets and those with a share of every block's channels, before training with pruning and after."""
    feeds = {unit.name for pair in setting.spec.feed_forwards for unit in pair}
    points = dict(setting.points)
    for share in SHARES:
        kept = kept_channels(setting.spec.feed_forwards[0][1], (share,), GROUP)[0]
        subnet = setting.uniform[3]
        items = {unit: setting.space.pruned(unit, c, kept) if unit in feeds else c for unit, c in subnet}
        points[f"3, {share:.0%} of channels"] = Subnet.of(items)
    if setting.find("pruning", "before") is None:
        setting.row("pruning", "before", Run(setting.untrained(), 0.0, 0), points)
    if setting.find("pruning", "after") is None:
        setting.row("pruning", "after", setting.trained(Method()), points)


def one_against_many(setting: Setting) -> None:
    """The joint training, a training for each bit-width, and mixtures of both."""
    if setting.find("cost", "separate") is not None:
        return
    run = setting.trained(METHODS["cost"]["joint"])
    joint, windows = run.supernet, setting.windows[:SENSITIVITY]
    losses, _ = measure_sensitivities(setting.model, joint, windows, setting.held_out, setting.seed)
    limits = {f"planned {average:g}": code_bits(setting.spec, setting.space, average) for average in AVERAGES}
    solved = {name: solve(setting.space, losses, (limit,)) for name, limit in limits.items()}
    subnets = setting.points | {name: one.subnet for name, one in solved.items() if one is not None}
    setting.row("cost", "joint", run, subnets)
    codes, seconds, parameters = joint.weights(), 0.0, 0
    for bits in BITS:
        run = setting.trained(Method("uniform", bits=(bits,)))
        seconds, parameters = seconds + run.seconds, parameters + run.parameters
        for name, choices in run.supernet.weights().items():
            codes[name] = {c: choices[c] if c.bits == bits else old for c, old in codes[name].items()}
    separate = build(setting.model, setting.spec, setting.space, codes)
    setting.row("cost", "separate", Run(separate, seconds, parameters), subnets)


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
        cost = f"{r['parameters'] / 1e6:.2f}", f"{r['seconds']:.0f}"
        cells.append((f"{r['group']}: {r['name']}", r["steps"], r["seed"], *found, *cost))
    table(("", "steps", "seed", *points, "million parameters", "seconds"), cells)


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
