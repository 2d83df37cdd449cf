"""Whether the choices of a unit pull a shared adapter the same way (arXiv 2203.15207, section 3.2)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from records.atomic import write_text
from supernet.build import Supernet
from supernet.distill import Target, distill
from supernet.progress import Progress, silent
from supernet.sharing import Agreement
from supernet.space import Choice, Subnet


def measure_agreement(
    teacher: Any, supernet: Supernet, bits: Sequence[int], batches: Sequence[Tensor], progress: Progress = silent
) -> dict[str, Agreement]:
    """By unit: the cosine of the gradients that uniform subnets of two bit-widths leave on its adapters, averaged over
    `batches` of windows `(batch, tokens)`.

    The supernet's adapters at `bits` must be shared. About `len(bits) * len(batches)` training steps; nothing moves.
    """
    sums: dict[str, dict[tuple[Choice, Choice], float]] = defaultdict(lambda: defaultdict(float))
    uniform = {b: supernet.space.uniform(supernet.spec, b) for b in bits}
    for number, ids in enumerate(batches):
        gradients = {b: _gradients(teacher, supernet, subnet, ids) for b, subnet in uniform.items()}
        for low, high in combinations(sorted(bits), 2):
            for unit, ours in gradients[low].items():
                cosine = torch.cosine_similarity(ours, gradients[high][unit], dim=0).item()
                sums[unit][uniform[low][unit], uniform[high][unit]] += cosine / len(batches)
        progress("gradient agreement", number + 1, len(batches))
    return {unit: dict(pairs) for unit, pairs in sums.items()}


def _gradients(teacher: Any, supernet: Supernet, subnet: Subnet, ids: Tensor) -> dict[str, Tensor]:
    """The gradient on every unit's adapters, flat, with `subnet` active."""
    supernet.activate(subnet)
    adapters = supernet.adapters(subnet)
    parameters = [p for adapter in adapters.values() for p in adapter.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    distill(Target.of(teacher, ids), supernet.model, ids)
    found = {}
    for unit in supernet.spec.units:
        mine = [a for lin in unit.linears if (a := supernet.matrices[lin.name].adapter(subnet[unit.name]))]
        grads = [p.grad.flatten() for adapter in mine for p in adapter.parameters() if p.grad is not None]
        if grads:
            found[unit.name] = torch.cat(grads)
    for parameter in parameters:
        parameter.grad = None
    return found


def write_agreement(path: Path, agreement: Mapping[str, Agreement]) -> None:
    plain = {unit: {f"{a} {b}": cosine for (a, b), cosine in pairs.items()} for unit, pairs in agreement.items()}
    write_text(path, json.dumps(plain, indent=1) + "\n")


def read_agreement(path: Path) -> dict[str, Agreement]:
    def pair(text: str) -> tuple[Choice, Choice]:
        low, high = map(Choice.parse, text.split())
        return low, high

    plain = json.loads(path.read_text(encoding="utf-8"))
    return {unit: {pair(text): cosine for text, cosine in pairs.items()} for unit, pairs in plain.items()}
