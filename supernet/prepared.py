"""What was done to a full model before its codes were made, and whether a model is that one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from records.atomic import write_json
from records.errors import InputError
from records.reading import read_record
from supernet.awq import rescale, same
from supernet.checkpoint import ORDER, SCALING, SupernetFiles
from supernet.exact import in_float32
from supernet.files import read_tensors
from supernet.folder import PREPARED, PREPARING
from supernet.model import hidden_states
from supernet.pruning import reorder
from supernet.spec import ModelSpec


@dataclass(frozen=True)
class Prepared:
    """What codes are made from, beside the files in the same folder: what text the windows are, what plain rounding
    loses on the held-out ones, by bits, what the gate counted, and the files of the changes to the model."""

    text: str
    rounding: dict[str, float]
    gate: dict[str, dict[str, int]]
    changes: tuple[str, ...]

    def save(self, out: Path) -> None:
        write_json(out / PREPARING / PREPARED, asdict(self))

    @classmethod
    def read(cls, out: Path) -> Prepared:
        return read_record(out / PREPARING / PREPARED, cls, "note of a start", "start again with a new --out")

    def read_changes(self, out: Path) -> dict[str, dict[str, Tensor]]:
        """By the name of their file."""
        return {name: read_tensors(out / PREPARING / name)[0] for name in self.changes}


def change(model: Any, spec: ModelSpec, changes: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Do the `changes` to a full model as it was read; it computes the same."""
    if ORDER in changes:
        reorder(model, spec, changes[ORDER])
    if SCALING in changes:
        rescale(model, changes[SCALING])


def as_prepared(model: Any, files: SupernetFiles) -> None:
    """Do to a full model as it was read what was done to it before the codes of `files` were made."""
    change(model, files.spec, {name: files.read(name) for name in files.changes})


@torch.no_grad()
def check_same(model: Any, files: SupernetFiles, source: str) -> None:
    """InputError where `model`, as prepared, is not the one that the supernet was begun from, wherever it lies now."""
    reference, known = files.reference(), files.info["source"]
    window = reference.windows[:1].to(model.device)
    if model.get_input_embeddings().weight.shape[-1] == reference.hidden.shape[-1]:
        with in_float32(model):
            found = hidden_states(model, window)[0].cpu()
        if (found - reference.hidden[0]).norm() <= same(model) * reference.hidden[0].norm():
            return
    raise InputError(f"{files.path} was begun from another model, {known}, than {source}; give the same model")
