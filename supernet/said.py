"""What a model says at positions of a text, kept small: values without torch, for whoever compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP = 64  # likeliest tokens that are kept of a position
DRAWN = 8  # further tokens, drawn from all others as likely as the model finds them
# Log probabilities are whole multiples of 1 / STEPS nats, and rests of 1 / REST_STEPS: finer than any comparison here
# asks for, and so much coarser than what sums in float64 differ by from machine to machine that they round alike.
STEPS, REST_STEPS = 2**12, 2**18


@dataclass(frozen=True)
class Said:
    """At each of n positions: the likeliest tokens with their log probabilities, some drawn from all others, and what
    these others have together.

    ids: int32 `(n, k + drawn)`, the k likeliest first, of equals the smaller id, no token twice, then DRAWN of the
    others, which may be the same, or none; log_probs: float32 of the same shape, nats; rest: float32 `(n,)`, the
    probability of all but the k. k is TOP, or the vocabulary where that is smaller, and then none are drawn. Of ids
    that were asked for, the order is theirs.
    """

    ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    rest: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rest)

    def at(self, positions: Any) -> Said:
        return Said(self.ids[positions], self.log_probs[positions], self.rest[positions])

    def kl(self, log_probs: NDArray[Any], rest: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """KL divergence `(n,)` in nats to what another model gives the same `ids`, log probabilities of their shape,
        and all others, `rest` `(n,)`: given where the log probabilities are in steps, else what is missing to 1.

        Exact over the likeliest. Over the others it is p - q of all of them and the mean, over those drawn from p, of
        q / p - 1 - log(q / p), times p of all (Schulman, Approximating KL divergence, 2020): right on average, never
        negative, and of little spread where the two are near each other. Where none were drawn the others are one
        event, and it is at least so much.
        """
        ours, left = _whole(self.log_probs[:, :TOP], self.rest), self.rest.astype(np.float64)
        theirs = log_probs[:, :TOP].astype(np.float64)
        if rest is None:
            rest = 1 - np.exp(theirs).sum(-1)
        else:
            theirs = _whole(theirs, rest)
        found = (np.exp(ours) * (ours - theirs)).sum(-1)
        if self.ids.shape[1] > TOP:
            further = log_probs[:, TOP:].astype(np.float64) - self.log_probs[:, TOP:]
            found += left - rest + left * (np.expm1(further) - further).mean(-1)
        else:
            found += np.where(left > 0, left * np.log(np.maximum(left, 1e-300) / np.maximum(rest, 1e-12)), 0.0)
        return np.asarray(found)

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        return {f"{name}.{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, name: str, arrays: Mapping[str, NDArray[Any]]) -> Said:
        return cls(**{field.name: arrays[f"{name}.{field.name}"] for field in fields(cls)})


def _whole(log_probs: NDArray[Any], rest: NDArray[Any]) -> NDArray[np.float64]:
    """The log probabilities `(n, k)` as they are together 1 with the `rest` `(n,)`, from which rounding to steps, each
    by itself, has moved them: by a step at most."""
    found = log_probs.astype(np.float64)
    with np.errstate(divide="ignore"):
        off = np.log1p(-np.minimum(rest.astype(np.float64), 1)) - np.log(np.exp(found).sum(-1))
    return np.asarray(found + np.clip(off, -1 / STEPS, 1 / STEPS)[:, None])


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
