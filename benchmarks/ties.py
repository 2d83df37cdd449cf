"""What llama.cpp gains where query, key and value, and gate and up, may differ: plans of the same bytes, tied and free.

    python benchmarks/ties.py --supernet FOLDER --text ../shared/text/train.txt

For each budget of bytes on disk two subnets are solved exactly: of linears by themselves, and with siblings tied as
ONNX Runtime and vLLM tie them. Both come from one table of sensitivities, which are measured here for each linear, on
windows of --text, also where the supernet is of before and holds them for several linears together. Quality is KL
divergence per token from the full model, in float32, on the texts that came with the supernet.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from claims import Claim, finish, table

from planner.runtimes.llamacpp import tensors
from planner.search.base import Problem, Resource
from planner.search.exact import ExactSearch
from supernet.build import Supernet
from supernet.checkpoint import SupernetFiles, open_supernet
from supernet.evaluate import Reference, evaluate_texts
from supernet.loading import load_model
from supernet.model import spec_of_model
from supernet.prepared import as_prepared
from supernet.sensitivity import Table, fisher
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import SearchSpace, Subnet
from supernet.spec import ModelSpec
from supernet.text import spread_windows
from supernet.ties import apart, siblings, tied, tied_space, tied_table

PARTS = ("predicted", "KL", "seconds", "gap", "mixed")
SHARES = (0.05, 0.12, 0.2, 0.3, 0.45)  # of the way from the fewest bytes to the most
MOST = 1.0  # times the KL of the tied plan, over all budgets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supernet", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8, help="that sensitivities are measured on")
    parser.add_argument("--measured", type=int, default=4, help="windows of each of the supernet's texts for KL")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="where budgets lie, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    files = open_supernet(arguments.supernet)
    supernet, losses, seconds = measured_losses(files, arguments.text, arguments.windows, arguments.seed)
    names = views(supernet.spec)
    plans = [{n: planned(supernet, losses, spec, share) for n, spec in names.items()} for share in arguments.shares]
    subnets = list(dict.fromkeys(plan.subnet for both in plans for plan in both.values()))
    texts = {name: first_windows(text, arguments.measured) for name, text in files.references().items()}
    qualities = dict(zip(subnets, evaluate_texts(supernet, subnets, texts), strict=True))
    kl = {subnet: fmean(quality.kl for quality in found.values()) for subnet, found in qualities.items()}
    rows = [
        {"limit": both["tied"].limit, **{f"{key}, {name}": value for key in PARTS for name, plan in both.items()
         for value in [kl[plan.subnet] if key == "KL" else getattr(plan, key)]}}
        for both in plans
    ]  # fmt: skip
    cells = [(f"{row['limit'] / 1e6:.1f}", *(f"{value:.4g}" for value in list(row.values())[1:])) for row in rows]
    table(("MB", *list(rows[0])[1:]), cells)
    ratio = math.exp(fmean(math.log(row["KL, free"] / row["KL, tied"]) for row in rows))
    print(f"sensitivities of {len(supernet.spec.units)} units took {seconds:.0f} s")
    finish(__file__, [Claim("KL of free plans over that of tied ones", ratio, MOST)], rows=rows, seconds=seconds)


def first_windows(text: Reference, count: int) -> Reference:
    return replace(text, windows=text.windows[:count], hidden=text.hidden[:count])


def views(spec: ModelSpec) -> dict[str, ModelSpec]:
    return {"tied": tied(spec, siblings(spec)), "free": spec}


def measured_losses(files: SupernetFiles, text: Path, count: int, seed: int) -> tuple[Supernet, Table, float]:
    """The supernet with a unit for each linear, and what each choice loses, scaled as `sensitivity.json` is."""
    loaded = load_model(files.info["source"])
    as_prepared(loaded.model, files)
    spec = spec_of_model(loaded.model, files.spec.name)
    unit_of = {linear.name: unit.name for unit in files.spec.units for linear in unit.linears}
    space = SearchSpace.of({unit.name: files.space[unit_of[unit.name]] for unit in spec.units})
    supernet = replace(files.load(), spec=spec, space=space)
    windows = spread_windows(str(text), loaded.tokenizer, count, files.info["recipe"]["window_tokens"], seed)
    units = [unit for unit in spec.units if not unit.is_table]
    started = time.perf_counter()
    losses = fisher(loaded.model, supernet, units, windows, seed)
    seconds = time.perf_counter() - started
    known = SensitivityTable.load(files.path / SENSITIVITY_FILE).by_choice
    for bits in space.bits(spec):
        old = {unit_of[unit.name] for unit in units}
        before = sum(loss for unit in old for c, loss in known[unit].items() if c.bits == bits)
        now = sum(loss for unit in units for c, loss in losses[unit.name].items() if c.bits == bits)
        for unit in units:
            losses[unit.name] = {c: x * (before / now if c.bits == bits else 1) for c, x in losses[unit.name].items()}
    return supernet, losses | {u.name: known[u.name] for u in spec.units if u.is_table}, seconds


@dataclass(frozen=True)
class Plan:
    """`mixed` counts the groups of siblings that differ; `seconds` and `gap` are of the exact search."""

    subnet: Subnet
    predicted: float
    limit: float
    seconds: float
    gap: float
    mixed: int


def planned(supernet: Supernet, losses: Table, spec: ModelSpec, share: float) -> Plan:
    """The best subnet in the units of `spec`."""
    space = tied_space(supernet.space, spec)
    sizes = {u.name: {c: float(tensors.unit_bytes(u, c)) for c in space[u.name]} for u in spec.units}
    low, high = (sum(pick(each.values()) for each in sizes.values()) for pick in (min, max))
    limit = float(round(low + share * (high - low)))
    problem = Problem(space, tied_table(losses, spec), (Resource("disk", "bytes", limit, 0.0, sizes),))
    started = time.perf_counter()
    found = ExactSearch().search(problem)
    subnet = apart(found.candidates[0].subnet, spec, supernet.spec)
    mixed = sum(len({subnet[unit] for unit in group}) > 1 for group in siblings(supernet.spec))
    return Plan(
        subnet, found.candidates[0].loss, limit, time.perf_counter() - started, found.trace["gap"], mixed
    )  # fmt: skip


if __name__ == "__main__":
    main()
