"""What a model in this process says: as a runtime's `Speaker` tells of a package, so that both are asked alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from supernet.model import hidden_states, logits_of

Ids = NDArray[np.integer[Any]]

TOGETHER = 2048  # tokens of windows that are computed together
ROWS = 256  # of logits that are made together


class ModelSpeaker:
    """A causal model of transformers. It goes on after a prompt until one of `stops` came."""

    def __init__(self, model: Any, stops: Sequence[int]) -> None:
        self.model, self.stops = model, frozenset(stops)

    @torch.no_grad()
    def log_probs(
        self, windows: Sequence[Ids], positions: Ids, ids: Ids, seconds: float
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """What is said at the ascending `positions` `(n,)` in `windows` one after another: log probabilities of `ids`
        `(n, k)`, float32 `(done, k)`, and the likeliest tokens `(done,)`; `done` of them come within `seconds`."""
        until, found, likeliest = time.monotonic() + seconds, [], []
        starts = np.cumsum([0, *map(len, windows)])
        for first, last in _lots([len(window) for window in windows]):
            here = slice(*np.searchsorted(positions, [starts[first], starts[last]]))
            window = np.searchsorted(starts, positions[here], side="right") - 1
            places = window - first, positions[here] - starts[window]
            read = self._read(windows[first:last])[places]
            asked = torch.from_numpy(np.ascontiguousarray(ids[here])).long()
            for rows, some in zip(read.split(ROWS), asked.split(ROWS), strict=True):
                said = logits_of(self.model, rows).float().log_softmax(-1)
                found.append(said.gather(1, some.to(said.device)).cpu().numpy())
                likeliest.append(said.argmax(-1).int().cpu().numpy())
            if time.monotonic() > until:
                break
        return np.concatenate([*found, np.zeros((0, ids.shape[1]), np.float32)]), np.concatenate([*likeliest, [0][:0]])

    def _read(self, windows: Sequence[Ids]) -> torch.Tensor:
        """What the head reads, `(windows, longest, hidden_size)`: what stands after a window reaches nothing in it."""
        together = np.zeros((len(windows), max(map(len, windows))), np.int64)
        for row, window in zip(together, windows, strict=True):
            row[: len(window)] = window
        return hidden_states(self.model, torch.from_numpy(together).to(self.model.device))

    @torch.no_grad()
    def continued(self, prompts: Sequence[Ids], new_tokens: int) -> list[list[int]]:
        """How it goes on greedily after each prompt, a stop included."""
        return [self._continued(prompt, new_tokens) for prompt in prompts]

    def _continued(self, prompt: Ids, new_tokens: int) -> list[int]:
        ids, cache, found = (
            torch.from_numpy(np.asarray(prompt, np.int64))[None].to(self.model.device),
            None,
            list[int](),
        )
        while len(found) < new_tokens and not (found and found[-1] in self.stops):
            out = self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            ids = logits_of(self.model, out.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
            found.append(int(ids))
        return found


def _lots(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring windows (first, last) that have `TOGETHER` tokens at most when all are as long as the longest."""
    found, first, longest = [], 0, 0
    for number, length in enumerate(lengths):
        longest = max(longest, length)
        if number > first and longest * (number + 1 - first) > TOGETHER:
            found.append((first, number))
            first, longest = number, length
    return [*found, (first, len(lengths))] if lengths else []
