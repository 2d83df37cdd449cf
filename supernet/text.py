"""Text for calibration, training and evaluation, as windows of token ids.

From a plain text file, a JSON-lines file (`text`, or `instruction`/`input`/`output`), a `datasets` name, or, with no
data at all, sampled from the full model itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernet.labels import draw

SAMPLED_AT_ONCE = 128  # sequences that are generated side by side
CACHE_BYTES = 2**31  # fewer are where their KV cache would outgrow this
CHARACTERS_PER_TOKEN = 12  # more than any tokenizer's average: how much of a file to read for a number of tokens


def read_windows(source: str, tokenizer: Any, count: int, window_tokens: int) -> Tensor:
    """The first `count` windows of a text, `(count, window_tokens)`, without special tokens.

    ValueError where the text is too short or a line is not understood; FileNotFoundError where there is no such text.
    """
    needed = count * window_tokens
    ids: list[int] = []
    for piece in _pieces(source, needed * CHARACTERS_PER_TOKEN):
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
        if len(ids) >= needed:
            return torch.tensor(ids[:needed]).view(count, window_tokens)
    raise ValueError(
        f"the text must have {count} windows of {window_tokens} tokens, {source} has {len(ids)} tokens, "
        f"enough for {len(ids) // window_tokens}; give more text or fewer windows"
    )


def spread_windows(source: str, tokenizer: Any, count: int, window_tokens: int, seed: int) -> Tensor:
    """Up to `count` windows drawn from all over a text, at least 2; ValueError where the text is shorter."""
    pieces = _pieces(source, None)
    ids = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    have = len(ids) // window_tokens
    if have < 2:
        raise ValueError(
            f"the text must have at least 2 windows of {window_tokens} tokens, {source} has {len(ids)} tokens; "
            "give more text"
        )
    windows = torch.tensor(ids[: have * window_tokens]).view(have, window_tokens)
    order = torch.randperm(have, generator=torch.Generator().manual_seed(seed))
    return windows[order[:count]]


def manual_windows(tokenizer: Any, count: int, window_tokens: int) -> Tensor:
    """`(count, window_tokens)` from all over the manual of the Python language, which comes with Python: text at hand
    everywhere, and of another kind than most that is trained on."""
    from pydoc_data.topics import topics

    manual = "\n\n".join(topics[name] for name in sorted(topics))
    length = window_tokens * CHARACTERS_PER_TOKEN
    starts = [(len(manual) - length) * number // count for number in range(count)]
    pieces = [tokenizer(manual[start : start + length], add_special_tokens=False)["input_ids"] for start in starts]
    return torch.tensor([ids[:window_tokens] for ids in pieces])


def _pieces(source: str, characters: int | None) -> Iterator[str]:
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"text is read from a file or a data set, {source} is a folder; give a .txt or .jsonl file")
    if path.suffix == ".jsonl":
        yield from _json_lines(_open(path, None))
    elif path.is_file() or path.suffix == ".txt":
        yield _open(path, characters)
    else:
        yield from _dataset(source)


def _open(path: Path, characters: int | None) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(characters)
    except UnicodeDecodeError as error:
        raise ValueError(f"text must be UTF-8, {path} is not ({error.reason}); convert it first") from error
    except FileNotFoundError:
        raise FileNotFoundError(f"no such text file: {path}; give a .txt or .jsonl file") from None


def _json_lines(text: str) -> Iterator[str]:
    for number, line in enumerate(filter(str.strip, text.splitlines()), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"every line must be a JSON object, record {number} is not ({error.msg})") from error
        yield _text_of(record, f"record {number}")


def _text_of(record: Any, where: str) -> str:
    if isinstance(record, dict) and isinstance(record.get("text"), str):
        return record["text"] + "\n"
    if isinstance(record, dict) and "instruction" in record and "output" in record:
        return "\n".join(str(record[key]) for key in ("instruction", "input", "output") if record.get(key)) + "\n"
    raise ValueError(f"a record needs `text`, or `instruction` and `output`, {where} has neither")


def _dataset(name: str) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ImportError(
            f"{name} is not a file, and data sets need an extra package; run: pip install 'bitfleet[datasets]'"
        ) from None
    try:
        rows = load_dataset(name, split="train")
    except Exception as error:
        raise ValueError(
            f"{name} is neither a file nor a data set that can be reached; give a .txt or .jsonl file"
        ) from error
    for number, row in enumerate(rows, 1):
        yield _text_of(row, f"row {number} of {name}")


@torch.no_grad()
def sample_windows(
    model: Any, count: int, window_tokens: int, seed: int, progress: Callable[[str, int, int], None]
) -> Tensor:
    """Windows `(count, window_tokens)` written by the full model: a random first token, then ancestral sampling.

    Data-free distillation as in LLM-QAT (Liu et al., arXiv 2305.17888): a model's own text covers what it knows. The
    end-of-text tokens are not drawn, so that every window is full.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    config = model.config.get_text_config()
    stop = model.generation_config.eos_token_id
    stops = torch.tensor([stop] if isinstance(stop, int) else stop or [], dtype=torch.long, device=model.device)
    batches = []
    most = sequences_at_once(config, window_tokens, model.dtype.itemsize)
    for start in range(0, count, most):
        size = min(most, count - start)
        ids = torch.randint(config.vocab_size, (size, 1), generator=generator, device=model.device)
        written, cache = [ids], None
        for done in range(window_tokens - 1):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = out.logits[:, -1].float()
            logits[:, stops] = -torch.inf
            ids = draw(logits.softmax(-1), generator)
            written.append(ids)
            progress("sample text", start * window_tokens + size * (done + 2), count * window_tokens)
        batches.append(torch.cat(written, 1))
    return torch.cat(batches).cpu()


def sequences_at_once(config: Any, window_tokens: int, bytes_per_value: int) -> int:
    """How many sequences of a text model's config are generated side by side, at least 1."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * heads * head_dim * bytes_per_value * window_tokens
    return max(1, min(SAMPLED_AT_ONCE, CACHE_BYTES // cached))
