"""Whether text that a model wrote for itself is worth learning from.

Models that are started in a way they were not trained for, and small ones left to themselves, fall into loops: one name
or one line over and over. Learning from that, and measuring on it, says nothing of what a user will see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NGRAM = 4
LOOPS = 0.8  # share of repeated n-grams from which a window is a loop; a table of the Python manual has 0.75
FEWEST = 0.5  # of the windows must be worth keeping, or none is
LEAST_PERPLEXITY = 1.5  # below it the model knows each next token: a loop, however long
LEAST_ENTROPY = 2.0  # nats; the tokens of any prose have 5 and more, a handful of tokens at random has less than 2


@dataclass(frozen=True)
class Look:
    """What was seen of a lot of windows."""

    repeated: tuple[float, ...]
    """By window: the share of its n-grams that were there before in it."""
    entropy: float
    """Of the tokens of all windows by how often each comes, in nats."""
    good: tuple[int, ...]
    """The windows that are no loops and no copies of an earlier one."""
    perplexity: float
    """The full model's own, on what it wrote."""

    @property
    def degenerate(self) -> bool:
        few = len(self.good) < FEWEST * len(self.repeated)
        return few or self.entropy < LEAST_ENTROPY or self.perplexity < LEAST_PERPLEXITY

    def __str__(self) -> str:
        loops = len(self.repeated) - len(self.good)
        mean = sum(self.repeated) / len(self.repeated)
        return (
            f"{loops} of {len(self.repeated)} windows are loops or copies, {mean:.0%} of their {NGRAM}-grams repeat, "
            f"token entropy {self.entropy:.1f} nats, the model's own perplexity {self.perplexity:.4g}"
        )


def look(windows: Tensor, first_tokens: int = 0, perplexity: float = math.nan) -> Look:
    """Look at windows `(count, tokens)` behind the `first_tokens` that all of them begin with."""
    own = windows[:, first_tokens:]
    repeated = tuple(repeated_share(window) for window in own)
    seen: set[tuple[int, ...]] = set()
    good = []
    for number, window in enumerate(own.tolist()):
        if repeated[number] < LOOPS and tuple(window) not in seen:
            good.append(number)
        seen.add(tuple(window))
    return Look(repeated, entropy(own), tuple(good), perplexity)


def repeated_share(window: Tensor) -> float:
    """Of a window's n-grams, the share that came before in it: 0 where all differ, near 1 in a loop."""
    grams = window.unfold(0, min(NGRAM, len(window)), 1)
    return 1 - len(torch.unique(grams, dim=0)) / len(grams)


def entropy(windows: Tensor) -> float:
    """Of the distribution of tokens, in nats: log of their number where all come equally often."""
    counts = torch.unique(windows, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return -(shares * shares.log()).sum().item()
