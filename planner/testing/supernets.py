"""A supernet of any model without training: every weight rounded to the nearest code, at whatever choice is asked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.runtimes.source import FoldedMatrix, dequantized
from supernet.formats import CODES
from supernet.rotary import Rotary, rotaries_of
from supernet.space import Choice, Subnet


@dataclass(frozen=True)
class Folded:
    """One matrix, as `planner.runtimes.source.FoldedMatrix`."""

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[Any]
    sides: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def dequantized(self) -> NDArray[np.float32]:
        return dequantized(self)


def nearest(weight: NDArray[np.float32], choice: Choice) -> Folded:
    """A matrix with every weight at the nearest code of its choice's grid."""
    import torch

    from supernet.grids import GRIDS

    found = GRIDS[choice.grid].nearest(torch.from_numpy(weight.copy()), choice)
    sides = {name: part.numpy() for name, part in found.parts.items() if name != CODES}
    return Folded(found.grid.codes(found).numpy(), found.scale.numpy(), found.zero.numpy(), sides)


class RoundedSupernet:
    """What is read of a supernet to write a package, over one Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from supernet.experts import unstacked
        from supernet.model import spec_of_model

        self.path = folder
        self.model_dir = folder
        self.trusted = False
        self.model = unstacked(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
        self.spec = spec_of_model(self.model, folder.name)
        self.fingerprint = "rounded-" + folder.name
        self.weights = {n: p.detach().numpy() for n, p in self.model.named_parameters()}

    def check_hashes(self) -> None:
        """There is nothing on disk that could be damaged."""

    def evidence(self) -> dict[str, Any]:
        """What the full model says of its own text, made once."""
        import torch
        from safetensors.numpy import load_file
        from transformers import AutoTokenizer

        from supernet.evidence import PROOF, write_evidence

        if not (self.path / PROOF).exists():
            held_out = torch.randint(3, 259, (4, 64), generator=torch.Generator().manual_seed(0))
            write_evidence(self.path / PROOF, self.model, AutoTokenizer.from_pretrained(self.path), held_out, self.spec)
        return dict(load_file(self.path / PROOF))

    def rotaries(self) -> Mapping[str, Rotary]:
        return rotaries_of(self.model.config)

    def folded(self, linear: str, choice: Choice) -> FoldedMatrix:
        return nearest(self.weights[linear + ".weight"], choice)

    def float_tensors(self) -> Mapping[str, Any]:
        quantized = {linear.name + ".weight" for unit in self.spec.units for linear in unit.linears}
        return {n: p.detach() for n, p in self.model.named_parameters() if n not in quantized}

    def subnet_model(self, subnet: Subnet) -> Any:
        """The plain model whose weights are the subnet's."""
        import torch

        model = copy.deepcopy(self.model)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for unit in self.spec.units:
                for linear in unit.linears:
                    weight = dequantized(self.folded(linear.name, subnet[unit.name]))
                    parameters[linear.name + ".weight"].copy_(torch.from_numpy(weight))
        return model
