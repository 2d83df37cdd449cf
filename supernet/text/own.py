"""Text for a training that was given none: the full model's own, or the Python manual where that is degenerate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from supernet.progress import Progress, silent
from supernet.text.beginning import beginning
from supernet.text.degenerate import look
from supernet.text.sampling import sample_windows
from supernet.text.windows import manual_windows

SAMPLED = "sampled from the full model"


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
    if seen.degenerate:
        manual = manual_windows(tokenizer, count, window_tokens, "train")
        return manual, f"the Python manual, since what the full model writes is degenerate ({seen})"
    good = windows[list(seen.good)]
    missing = len(windows) - len(good)
    if not missing:
        return windows, f"{SAMPLED} ({seen})"
    manual = manual_windows(tokenizer, missing, window_tokens, "train")
    return _mixed(good, manual, seed), f"{SAMPLED}, {len(manual)} windows of the Python manual for those ({seen})"


def _mixed(good: Tensor, manual: Tensor, seed: int) -> Tensor:
    together = torch.cat([good, manual])
    return together[torch.randperm(len(together), generator=torch.Generator().manual_seed(seed))]
