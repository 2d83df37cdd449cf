"""Text for a training that was given none: the full model's own, or the Python manual where that is degenerate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from supernet.progress import Progress, say, silent
from supernet.text.beginning import beginning
from supernet.text.degenerate import look
from supernet.text.sampling import sample_windows
from supernet.text.windows import manual_windows

SAMPLED = "sampled from the full model"
INSTEAD = "the Python manual in place of degenerate text of the full model"


def own_windows(
    model: Any,
    tokenizer: Any,
    count: int,
    window_tokens: int,
    seed: int,
    progress: Progress = silent,
    seconds: float | None = None,
) -> tuple[Tensor, str]:
    """Up to `count` windows, and what they are in words. Loops and copies among them are replaced; where most are, or
    all together are too uniform, the manual takes the place of all."""
    first = beginning(tokenizer)
    written = sample_windows(model, count, window_tokens, seed, progress, first, seconds)
    windows, seen = written.windows, look(written.windows, len(first), written.perplexity)
    bad = len(windows) if seen.degenerate else len(windows) - len(seen.good)
    if not bad:
        say(f"sampled text: {seen}")
        return windows, SAMPLED
    manual = manual_windows(tokenizer, bad, window_tokens, "train")
    if seen.degenerate:
        say(f"what the full model writes is degenerate ({seen}): the Python manual takes its place")
        return manual, INSTEAD
    say(f"sampled text: {seen}; windows of the Python manual take the place of those")
    return _mixed(windows[list(seen.good)], manual, seed), f"{SAMPLED}, {bad} windows of the Python manual among it"


def _mixed(good: Tensor, manual: Tensor, seed: int) -> Tensor:
    together = torch.cat([good, manual])
    return together[torch.randperm(len(together), generator=torch.Generator().manual_seed(seed))]
