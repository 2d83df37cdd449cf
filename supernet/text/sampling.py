"""Text that the full model writes itself: what there is to train on where nobody gave any.

Data-free distillation as in LLM-QAT (Liu et al., arXiv 2305.17888): a model's own text covers what it knows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from supernet.labels import draw
from supernet.progress import Progress, silent

SAMPLED_AT_ONCE = 128  # sequences that are generated side by side
CACHE_BYTES = 2**31  # fewer are where their KV cache would outgrow this
LEAST = 16  # windows that are written whatever the time
CHECKED = 8  # steps between looks at the clock


@dataclass(frozen=True)
class Written:
    """Windows `(count, window_tokens)`, and how surprised the model was by its own words."""

    windows: Tensor
    perplexity: float


def sample_windows(
    model: Any,
    count: int,
    window_tokens: int,
    seed: int,
    progress: Progress = silent,
    first: Sequence[int] = (),
    seconds: float | None = None,
) -> Written:
    """Windows written by the full model behind `first`, what its tokenizer puts before a text; temperature 1.

    Where texts begin with nothing a random token does, and what is measured of the text is the same as behind an
    end-of-text token (docs/log.md). The end-of-text tokens are not drawn, so that every window is full. Where the time
    would run out, fewer windows are written: down to `LEAST`, and those that are kept are always finished.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    config = model.config.get_text_config()
    most = sequences_at_once(config, window_tokens, model.dtype.itemsize)
    deadline = None if seconds is None else time.monotonic() + seconds
    batches: list[Written] = []
    done = 0
    while done < count and (not batches or deadline is None or time.monotonic() < deadline):
        size, before = min(most, count - done), done

        def report(tokens: float, before: int = before) -> None:
            progress("sample text", before * window_tokens + round(tokens), count * window_tokens)

        share = None if deadline is None else deadline - time.monotonic()
        batches.append(_batch(model, size, window_tokens, first, generator, share, report))
        done += size
    surprise = [math.log(batch.perplexity) * len(batch.windows) for batch in batches]
    windows = torch.cat([batch.windows for batch in batches])
    return Written(windows.cpu(), math.exp(sum(surprise) / len(windows)))


@torch.no_grad()
def _batch(
    model: Any, size: int, window_tokens: int, first: Sequence[int], generator: torch.Generator,
    seconds: float | None, report: Callable[[float], None],
) -> Written:  # fmt: skip
    """Windows side by side, one token of each a step; the last of them are given up where the time will not do."""
    stops = _stops(model)
    written, ids = _started(model, size, first, generator)
    cache: Any = None
    steps, surprise, began = window_tokens - written.shape[1], torch.zeros(size), time.monotonic()
    for step in range(steps):
        if seconds is not None and step and step % CHECKED == 0:
            kept = _affordable(len(ids), steps, step, time.monotonic() - began, seconds)
            if kept < len(ids):
                cache.batch_select_indices(torch.arange(kept, device=ids.device))
                written, ids, surprise = written[:kept], ids[:kept], surprise[:kept]
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        logits = out.logits[:, -1].float()
        logits[:, stops] = -torch.inf
        probabilities = logits.softmax(-1)
        ids = draw(probabilities, generator)
        surprise -= probabilities.gather(1, ids).log().squeeze(1).cpu()
        written = torch.cat([written, ids], 1)
        report(size * (window_tokens - steps + step + 1))
    return Written(written, math.exp(min(surprise.mean().item() / max(steps, 1), 700.0)))


def _affordable(size: int, steps: int, step: int, spent: float, seconds: float) -> int:
    """How many of `size` windows can be finished in the time, by what the steps so far took; `LEAST` at the least.

    A step takes as long as its windows are many, since it is products that it waits for.
    """
    left = (seconds - spent) / (spent / step * (steps - step))
    return size if left >= 1 else min(size, max(LEAST, math.floor(size * max(left, 0.0))))


def _started(model: Any, size: int, first: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What is kept of the start, `(size, tokens)`, and what the model reads first."""
    if first:
        begun = torch.tensor([list(first)], device=model.device).expand(size, -1)
        return begun, begun
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (size, 1), generator=generator, device=model.device)
    return ids, ids


def _stops(model: Any) -> Tensor:
    stop = model.generation_config.eos_token_id
    return torch.tensor([stop] if isinstance(stop, int) else stop or [], dtype=torch.long, device=model.device)


def sequences_at_once(config: Any, window_tokens: int, bytes_per_value: int) -> int:
    """How many sequences of a text model's config are generated side by side, at least 1."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * heads * head_dim * bytes_per_value * window_tokens
    return max(1, min(SAMPLED_AT_ONCE, CACHE_BYTES // cached))
