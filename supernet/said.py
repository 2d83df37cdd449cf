"""What a model says at positions of a text, kept small: values without torch, for whoever compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP = 64  # likeliest tokens that are kept of a position


@dataclass(frozen=True)
class Said:
    """At each of n positions: the likeliest tokens with their log probabilities, and what all others have together.

    ids: int32 `(n, k)`, likeliest first, no token twice; log_probs: float32 `(n, k)`, nats; rest: float32 `(n,)`, a
    probability. k is TOP, or the vocabulary where that is smaller.
    """

    ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    rest: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rest)

    def at(self, positions: Any) -> Said:
        return Said(self.ids[positions], self.log_probs[positions], self.rest[positions])

    def kl(self, log_probs: NDArray[Any]) -> NDArray[np.float64]:
        """KL divergence `(n,)` in nats to what another model gives the same `ids`, log probabilities `(n, k)`.

        Of the distributions over these tokens and the rest as one event: by the data-processing inequality at most that
        of the whole distributions, and near it where the rest is small.
        """
        ours, theirs = self.log_probs.astype(np.float64), log_probs.astype(np.float64)
        known = np.exp(ours)
        rest = self.rest.astype(np.float64)
        other = np.maximum(1 - np.exp(theirs).sum(-1), 1e-12)
        left = np.where(rest > 0, rest * np.log(np.maximum(rest, 1e-300) / other), 0.0)
        return np.asarray((known * (ours - theirs)).sum(-1) + left)

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        return {f"{name}.{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, name: str, arrays: Mapping[str, NDArray[Any]]) -> Said:
        return cls(**{field.name: arrays[f"{name}.{field.name}"] for field in fields(cls)})


@dataclass(frozen=True)
class Continuation:
    """How a model goes on greedily: tokens int32 `(prompts, new)`; margins float32 `(prompts, new)`, by how many nats
    each was likelier than the next likeliest: where that is next to nothing, an equal model may go on otherwise.
    """

    tokens: NDArray[np.int32]
    margins: NDArray[np.float32]

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        return {f"{name}.tokens": self.tokens, f"{name}.margins": self.margins}

    @classmethod
    def of(cls, name: str, arrays: Mapping[str, NDArray[Any]]) -> Continuation:
        return cls(arrays[f"{name}.tokens"], arrays[f"{name}.margins"])


def split(tokens: NDArray[Any], lengths: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The windows that `tokens` holds one after another."""
    yield from np.split(tokens, np.cumsum(lengths)[:-1])
