"""What two models say, compared a stretch of the vocabulary at a time, against whole softmaxes in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from supernet.distances import LOGITS, Distances, stretches

WINDOWS, LENGTH, VOCABULARY = 3, 7, 101
TOKENS = WINDOWS * LENGTH


def logits(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    made = 8 * torch.randn(TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype)


def successors() -> Tensor:
    return torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(9))


def compared(full: Tensor, ours: list[Tensor], step: int) -> Tensor:
    distances = Distances(successors(), len(ours))
    for start in range(0, VOCABULARY, step):
        ids = slice(start, min(start + step, VOCABULARY))
        distances.read(full[:, ids], [one[:, ids] for one in ours], ids)
    return distances.per_token(WINDOWS)


def whole(full: Tensor, ours: Tensor) -> Tensor:
    """By the definitions."""
    theirs, said = (one.double().log_softmax(-1) for one in (full, ours))
    kl = (theirs.exp() * (theirs - said)).sum(-1)
    agree = (full.argmax(-1) == ours.argmax(-1)).double()
    surprises = [-one.gather(1, successors().unsqueeze(1)).squeeze(1) for one in (said, theirs)]
    return torch.stack([kl, agree, *surprises], -1).view(WINDOWS, LENGTH, 4)


@pytest.mark.parametrize("step", [1, 10, VOCABULARY])
@pytest.mark.parametrize("tile", [40, 2**18])
def test_stretches_add_up_to_the_definition(step: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supernet.distances.TILE", tile)
    full, ours = logits(0), [logits(1), logits(0) + 0.01 * logits(2), logits(3, torch.bfloat16)]
    found = compared(full, ours, step)
    assert found.dtype == torch.float64
    for one, logit in zip(found, ours, strict=True):
        torch.testing.assert_close(one, whole(full, logit.float()), rtol=1e-5, atol=1e-5)


def test_a_model_is_no_distance_from_itself() -> None:
    found = compared(logits(0), [logits(0)], 10)
    assert found[0, ..., 0].abs().max() < 1e-12
    assert found[0, ..., 1].eq(1).all()
    assert torch.equal(found[0, ..., 2], found[0, ..., 3])


def test_of_equally_likely_tokens_the_first_counts() -> None:
    full, ours = torch.zeros(TOKENS, VOCABULARY), torch.zeros(TOKENS, VOCABULARY)
    full[:, [20, 70]], ours[:, [70, 20, 90]] = 5.0, 5.0
    ours[0, 20] = 0.0  # its first is another
    assert compared(full, [ours], 30)[0, ..., 1].sum(-1).tolist() == [LENGTH - 1, LENGTH, LENGTH]


@pytest.mark.parametrize("tokens", [1, 2048, LOGITS])
def test_stretches_cover_a_vocabulary_once_within_their_size(tokens: int) -> None:
    found = list(stretches(49152, tokens))
    assert [id for ids in found for id in range(ids.start, ids.stop)] == list(range(49152))
    assert all((ids.stop - ids.start) * tokens <= max(LOGITS, 64 * tokens) for ids in found)
