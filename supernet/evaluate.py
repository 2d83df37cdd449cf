"""How far a subnet is from the full model: KL divergence per token, perplexity, top-1 agreement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from records.errors import InputError
from supernet.build import Supernet
from supernet.distances import Distances, stretches
from supernet.model import logits_of
from supernet.prefixes import hidden_of_each
from supernet.progress import Progress, silent
from supernet.quality import Quality
from supernet.reference import Reference, joined
from supernet.space import Choice, Subnet

__all__ = ["Quality", "Reference", "evaluate", "evaluate_said", "evaluate_texts"]

AT_ONCE = 4  # subnets whose logits are made together
SAID_BYTES = 2**28  # of logits that are asked for at a time
BATCH_TOKENS = 2048  # windows are computed together up to so many tokens: weights are then made once for all


def evaluate(
    supernet: Supernet,
    subnets: Sequence[Subnet],
    reference: Reference,
    progress: Progress = silent,
    dtype: torch.dtype = torch.float32,
) -> list[Quality]:
    """The quality of each subnet on the reference's windows; the full model's part is computed once for all.

    In bfloat16 it takes a third of the time, and KL comes out 0.0003 to 0.002 higher on SmolLM2: enough to tell
    finalists apart, too coarse for 8 bits.
    """
    return [Quality.of(one.numpy()) for one in _said(supernet, subnets, reference, progress, dtype)]


def evaluate_texts(
    supernet: Supernet,
    subnets: Sequence[Subnet],
    references: Mapping[str, Reference],
    progress: Progress = silent,
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, Quality]]:
    """The quality of each subnet on each of several texts, by its name, in one pass over all windows.

    The windows of all texts are equally long and begin with as many tokens of the tokenizer's.
    """
    counts = [len(reference.windows) for reference in references.values()]
    said = _said(supernet, subnets, joined(references), progress, dtype)
    by_text = [zip(references, one.split(counts), strict=True) for one in said]
    return [{name: Quality.of(part.numpy()) for name, part in parts} for parts in by_text]


@torch.no_grad()
def evaluate_said(says: Callable[[Tensor], Tensor], reference: Reference, progress: Progress = silent) -> Quality:
    """The quality of whatever `says` float32 logits `(windows, tokens, vocabulary)` of windows `(windows, tokens)`.

    It is asked for as many windows at a time as have `SAID_BYTES` of them, or for one.
    """
    check_measurable(reference)
    count, length = reference.windows.shape
    rows, found = max(1, SAID_BYTES // (4 * length * len(reference.head))), []
    for start in range(0, count, rows):
        some = reference.part(slice(start, start + rows))
        theirs, successors = some.hidden[:, some.first : -1].flatten(0, 1), _successors(some)
        ours = says(some.windows)[:, some.first : -1].flatten(0, 1)
        if ours.shape[1] != len(some.head):
            raise InputError(f"logits must be of the {len(some.head)} tokens of the full model, got {ours.shape[1]}")
        distances = Distances(successors, 1)
        for ids in stretches(len(some.head), len(successors)):
            distances.read(some.logits(theirs, ids), [ours[:, ids]], ids)
        found.append(distances.per_token(len(some.windows))[0])
        progress("evaluate", min(count, start + rows), count)
    return Quality.of(torch.cat(found).numpy())


def check_measurable(reference: Reference) -> None:
    """InputError where no token that is measured has a successor."""
    length = reference.windows.shape[1]
    if length < reference.first + 2:
        raise InputError(f"a window must have 2 tokens after the {reference.first} of its beginning, got {length}")


@torch.no_grad()
def _said(
    supernet: Supernet, subnets: Sequence[Subnet], reference: Reference, progress: Progress, dtype: torch.dtype
) -> Tensor:
    """What `Quality.of` is made from, `(subnets, windows, tokens, 4)`."""
    check_measurable(reference)
    supernet.set_dtype(dtype)
    reference = reference.to(supernet.model.device)
    count, length = reference.windows.shape
    rows = max(1, BATCH_TOKENS // length)
    found = []
    for start in range(0, count, rows):
        some = reference.part(slice(start, start + rows))
        done, total = 2 * start, 2 * count  # windows through the blocks, then through the heads
        hidden = hidden_of_each(supernet, subnets, some.windows, partial(_shown, progress, done, some, total))
        report = partial(_shown, progress, done + len(some.windows), some, total)
        read = [one[:, reference.first : -1].flatten(0, 1) for one in hidden]
        found.append(_distances(supernet, subnets, some, read, report))
    return torch.cat(found, 1)


def _distances(
    supernet: Supernet, subnets: Sequence[Subnet], reference: Reference, hidden: Sequence[Tensor],
    report: Callable[[float], None],
) -> Tensor:  # fmt: skip
    """`_said` of all the reference's windows, from what the head reads of each subnet, `(tokens, hidden_size)`.

    Rows of the head are made once for all subnets that have it at one choice.
    """
    unit = supernet.spec.head
    head, alike = supernet.matrices[unit.linears[0].name], defaultdict[Choice, list[int]](list)
    for index, subnet in enumerate(subnets):
        alike[subnet[unit.name]].append(index)
    lots = [(c, same[at : at + AT_ONCE]) for c, same in alike.items() for at in range(0, len(same), AT_ONCE)]
    read = [torch.cat([hidden[index] for index in some]) for _, some in lots]
    theirs, successors = reference.hidden[:, reference.first : -1].flatten(0, 1), _successors(reference)
    distances, vocabulary = Distances(successors, len(subnets)), len(reference.head)
    for ids in stretches(vocabulary, len(successors)):
        ours: dict[int, Tensor] = {}
        for (choice, some), together in zip(lots, read, strict=True):
            head.select(choice)
            ours |= zip(some, logits_of(supernet.model, together, ids).split(len(successors)), strict=True)
        distances.read(reference.logits(theirs, ids), [ours[index] for index in range(len(subnets))], ids)
        report(ids.stop / vocabulary)
    return distances.per_token(len(reference.windows))


def _successors(reference: Reference) -> Tensor:
    """Of each token that is measured: a window's last has none."""
    return reference.windows[:, reference.first + 1 :].flatten()


def _shown(progress: Progress, done: int, some: Reference, total: int, share: float) -> None:
    """A share of the windows at hand, beside those that are done."""
    progress("evaluate", done + int(share * len(some.windows)), total)
