"""What a GGUF file loses in llama.cpp: KL per token from the full model, and from what is said of it elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf_kernels import has_q2_0, rewrite
from torch import Tensor

from planner.runtimes.llamacpp import fresh
from planner.runtimes.llamacpp.serving import SETTINGS, WEIGHTS
from supernet.reference import Reference

TOGETHER = 4  # windows that one process reads


@dataclass(frozen=True)
class Loss:
    """`kl` in nats per token from the full model, `top1` the share of tokens with the same likeliest successor.
    `subnet_kl` is the KL of the model in PyTorch that the file was made of, and `apart` that from it to the file."""

    kl: float
    top1: float
    subnet_kl: float | None = None
    apart: float | None = None


@torch.no_grad()
def loss_of(package: Path, reference: Reference, subnet: Any = None) -> Loss:
    """Of the file in a package's folder; `subnet` is a model."""
    sums = np.zeros(4)
    for number, said in enumerate(answers(package, reference.windows)):
        full = reference.log_probs(number, slice(0, len(said)))
        theirs = said.log_softmax(-1)
        sums[0] += divergence(full, theirs)
        sums[1] += float((full.argmax(-1) == theirs.argmax(-1)).sum())
        if subnet is not None:
            ours = subnet(reference.windows[number][None]).logits[0].log_softmax(-1)
            sums[2] += divergence(full, ours)
            sums[3] += divergence(ours, theirs)
    kl, top1, subnet_kl, apart = (sums / reference.windows.numel()).tolist()
    return Loss(kl, top1) if subnet is None else Loss(kl, top1, subnet_kl, apart)


def answers(package: Path, windows: Tensor) -> Iterator[Tensor]:
    """The logits `(tokens, vocabulary)` of each window."""
    with tempfile.TemporaryDirectory() as scratch:
        served = served_quickly(package, Path(scratch))
        for batch in windows.split(TOGETHER):
            yield from torch.from_numpy(fresh.logits(served, batch.numpy().astype(np.int64)))


def served_quickly(package: Path, scratch: Path) -> Path:
    """The package, or one that says the same where this build has no kernel for a type of its file."""
    if not has_q2_0(package / WEIGHTS):
        return package
    rewrite(package / WEIGHTS, scratch / WEIGHTS)
    (scratch / SETTINGS).write_bytes((package / SETTINGS).read_bytes())
    return scratch


def divergence(ours: Tensor, theirs: Tensor) -> float:
    """Of log probabilities `(tokens, vocabulary)`, added up over the tokens."""
    return float((ours.exp() * (ours - theirs)).sum(-1).double().sum())
