"""How near the KL that a package's proof finds is to the KL of whole distributions.

    python benchmarks/proof.py --supernet DIR PACKAGE...

At each position of the proof, the package's logits are compared with the subnet's in float32 over the whole vocabulary,
and over the tokens that the proof keeps, as `bitfleet verify` does where there is no supernet.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Claim, finish, table

from commands import names
from planner.package import open_package
from planner.proof import PROOF, Proof

SHARE, NATS = 0.05, 5e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supernet", required=True, help="the folder that the packages were made from")
    parser.add_argument("packages", nargs="+", type=Path)
    arguments = parser.parse_args()
    files = names.trained_supernet(arguments.supernet)
    rows, errors = [], []
    for path in arguments.packages:
        kept, whole, positions = compared(files, path)
        errors.append(abs(kept - whole) / max(NATS, SHARE * whole))
        rows.append((path.name, str(positions), f"{kept:.5f}", f"{whole:.5f}", f"{kept / whole - 1:+.1%}"))
    table(("PACKAGE", "POSITIONS", "KL BY THE PROOF", "KL IN FULL", ""), rows)
    held = f"KL by the proof, off by a share of {SHARE:.0%} or {NATS} of the full one, worst of {len(rows)} packages"
    finish(__file__, [Claim(held, max(errors), 1.0)], packages=rows)


def compared(files: Any, path: Path) -> tuple[float, float, int]:
    package = open_package(path)
    runtime = names.runtime_named(package.plan.runtime)
    package.check(runtime)
    proof = Proof.load(package.path / PROOF)
    model = files.subnet_model(package.plan.subnet)
    kept: list[Any] = []
    whole: list[Any] = []
    start = 0
    for window in proof.windows:
        at = np.flatnonzero((proof.positions >= start) & (proof.positions < start + len(window)))
        here = torch.from_numpy(proof.positions[at] - start).long()
        with torch.no_grad():
            ours = model(torch.from_numpy(window).long()[None]).logits[0][here].double().log_softmax(-1)
        logits = torch.from_numpy(runtime.engine().speaker(package.path).logits(window[None].astype(np.int64)))[0][here]
        theirs = logits.double().log_softmax(-1)
        whole.append((ours.exp() * (ours - theirs)).sum(-1).numpy())
        said = proof.subnet.at(at)
        kept.append(said.kl(theirs.gather(1, torch.from_numpy(said.ids).long()).numpy()))
        start += len(window)
    return float(np.concatenate(kept).mean()), float(np.concatenate(whole).mean()), len(proof.positions)


if __name__ == "__main__":
    main()
