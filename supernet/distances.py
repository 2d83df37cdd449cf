"""How far what one model says of the next token is from what another says, a stretch of the vocabulary at a time.

Neither all logits nor a whole head are ever in memory, and what is made of a stretch stays in a core's cache. With a
the logits of the full model and b those of a subnet,

    KL = sum_v p_v (a_v - b_v) - log sum_v exp a_v + log sum_v exp b_v,  p_v = exp a_v / sum_v exp a_v

whose sums go on from stretch to stretch over the largest logit so far (Milakov and Gimelshein, "Online normalizer
calculation for softmax", arXiv 1805.02867, algorithm 3).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

LOGITS = 2**21  # of one model that are made together
TILE = 2**18  # of these that are read together


def stretches(vocabulary: int, tokens: int) -> Iterator[slice]:
    """Of a vocabulary, such that so many tokens have `LOGITS` in each or less."""
    size = max(64, LOGITS // max(1, tokens))
    for start in range(0, vocabulary, size):
        yield slice(start, min(start + size, vocabulary))


class Said:
    """What a model says of the tokens after some, as far as the vocabulary was read: the sum of the exponentials of all
    logits over the largest one, which that is, and the logits of the `successors` `(tokens,)`."""

    def __init__(self, successors: Tensor) -> None:
        count, device = len(successors), successors.device
        self.successors = successors
        self.most = torch.full((count,), -torch.inf, device=device)
        self.likeliest = torch.zeros(count, dtype=torch.long, device=device)
        self.total = torch.zeros(count, dtype=torch.float64, device=device)
        self.asked = torch.zeros(count, device=device)

    def read(self, logits: Tensor, tokens: slice, ids: slice, out: Tensor) -> Tensor:
        """Go on with the `logits` of some `tokens`, float32 `(tokens, ids)`. `out` is filled with their exponentials
        over the largest so far; what was summed over the one before is to be multiplied by what is returned."""
        before, best = self.most[tokens], logits.amax(-1)
        more = (best > before).nonzero().squeeze(-1)
        self.likeliest[tokens][more] = logits[more].argmax(-1) + ids.start
        most = torch.maximum(before, best)
        fewer = (before - most).exp()
        torch.sub(logits, most.unsqueeze(-1), out=out).exp_()
        self.total[tokens] = self.total[tokens] * fewer + out.sum(-1)
        self.most[tokens] = most
        asked = self.successors[tokens]
        here = ((asked >= ids.start) & (asked < ids.stop)).nonzero().squeeze(-1)
        self.asked[tokens][here] = logits[here, asked[here] - ids.start]
        return fewer

    @property
    def log_total(self) -> Tensor:
        """The logarithm of the sum of the exponentials, float64."""
        return self.most + self.total.log()

    @property
    def surprise(self) -> Tensor:
        """Nats that each successor takes."""
        return self.log_total - self.asked


class Distances:
    """What a full model and several subnets say of the same tokens, whose successors are given."""

    def __init__(self, successors: Tensor, subnets: int) -> None:
        self.full = Said(successors)
        self.ours = [Said(successors) for _ in range(subnets)]
        self.apart = torch.zeros(subnets, len(successors), dtype=torch.float64, device=successors.device)

    def read(self, full: Tensor, ours: list[Tensor], ids: slice) -> None:
        """Go on with some `ids` of the vocabulary: logits of the full model and of each subnet, `(tokens, ids)`."""
        rows = max(1, TILE // (ids.stop - ids.start))
        weights, spare, difference = (full.new_empty(rows, ids.stop - ids.start, dtype=torch.float32) for _ in range(3))
        for start in range(0, len(full), rows):
            tokens = slice(start, min(start + rows, len(full)))
            weight, other, less = (one[: tokens.stop - start] for one in (weights, spare, difference))
            fewer = self.full.read(full[tokens], tokens, ids, weight)
            for index, logits in enumerate(ours):
                said = logits[tokens].float()
                torch.sub(full[tokens], said, out=less)
                so_far = self.apart[index, tokens] * fewer
                self.apart[index, tokens] = so_far + less.mul_(weight).sum(-1)
                self.ours[index].read(said, tokens, ids, other)

    def per_token(self, windows: int) -> Tensor:
        """For the tokens of each of so many windows: KL, agreement, and the surprise of subnet and full model at the
        successor; `(subnets, windows, tokens, 4)`, float64."""
        found = []
        for apart, ours in zip(self.apart, self.ours, strict=True):
            kl = apart / self.full.total - self.full.log_total + ours.log_total
            agree = (ours.likeliest == self.full.likeliest).double()
            found.append(torch.stack([kl, agree, ours.surprise, self.full.surprise], -1))
        return torch.stack(found).unflatten(1, (windows, -1)).cpu()
