"""Windows of token ids, cut out of text. Every window begins with the tokens that the tokenizer puts before a text."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from records.errors import InputError
from supernet.progress import Progress, silent
from supernet.text.beginning import beginning
from supernet.text.reading import PIECE, check_source, pieces
from supernet.text.records import Chat, Piece

CHARACTERS_PER_TOKEN = 12  # more than any tokenizer's average: how much of a text to keep for a number of tokens
PLACES = 64  # a text is read in at least so many places where it has them
FEWEST = 12  # windows of the manual that each use has at least
USES = ("train", "trial", "measure")
"""What the manual's windows are for. No window serves two of them."""


class Cutter:
    """Cuts a stream of tokens into windows of `window_tokens`, the tokenizer's beginning included."""

    def __init__(self, tokenizer: Any, window_tokens: int) -> None:
        self.tokenizer, self.window_tokens = tokenizer, window_tokens
        self.first = beginning(tokenizer)
        self.own_tokens = window_tokens - len(self.first)
        if self.own_tokens < 1:
            raise InputError(
                f"a window must be longer than the {len(self.first)} tokens that texts begin with, got {window_tokens}"
            )
        self.tokens = 0
        self.windows: list[array[int]] = []
        self._rest: list[int] = []

    def feed(self, text: Sequence[Piece]) -> None:
        for ids in self._encoded(text):
            self.tokens += len(ids)
            self._rest += ids
        full = len(self._rest) // self.own_tokens * self.own_tokens
        for start in range(0, full, self.own_tokens):
            self.windows.append(array("i", [*self.first, *self._rest[start : start + self.own_tokens]]))
        del self._rest[:full]

    def drop_rest(self) -> None:
        """What comes next is from another place."""
        self._rest.clear()

    def tensor(self, chosen: Iterable[int]) -> Tensor:
        """Windows by their numbers, int64 `(windows, window_tokens)`."""
        return torch.tensor([list(self.windows[number]) for number in chosen]).view(-1, self.window_tokens)

    def _encoded(self, text: Sequence[Piece]) -> Iterator[list[int]]:
        plain = [piece for piece in text if isinstance(piece, str)]
        ids = self.tokenizer(plain, add_special_tokens=False, verbose=False)["input_ids"] if plain else ()
        encoded = iter(ids)
        for piece in text:
            yield next(encoded) if isinstance(piece, str) else self._rendered(piece)

    def _rendered(self, chat: Chat) -> list[int]:
        ids = rendered(self.tokenizer, chat)
        return ids[len(self.first) :] if tuple(ids[: len(self.first)]) == self.first else ids


def rendered(tokenizer: Any, chat: Chat) -> list[int]:
    """A chat as the model's own template writes it, its special tokens as tokens."""
    if not tokenizer.chat_template:
        raise InputError(f"{chat.where} is a chat, and the model has no chat template; give plain text")
    try:
        return list(tokenizer.apply_chat_template(list(chat.messages), tokenize=True, return_dict=False))
    except Exception as error:
        raise InputError(f"the model's chat template refuses {chat.where}: {' '.join(str(error).split())}") from None


def read_windows(source: str, tokenizer: Any, count: int, window_tokens: int) -> Tensor:
    """The first `count` windows of a text, `(count, window_tokens)`.

    InputError where the text is too short or is not understood, MissingError where there is none.
    """
    cutter = Cutter(tokenizer, window_tokens)
    for piece in pieces(source):
        cutter.feed([piece])
        if len(cutter.windows) >= count:
            return cutter.tensor(range(count))
    raise InputError(
        f"the text must have {count} windows of {window_tokens} tokens, {source} has {cutter.tokens} tokens, "
        f"enough for {len(cutter.windows)}; give more text or fewer windows"
    )


def spread_windows(
    source: str, tokenizer: Any, count: int, window_tokens: int, seed: int, progress: Progress = silent
) -> Tensor:
    """Up to `count` windows drawn from all over a text, at least 2; InputError where the text is shorter.

    Memory does not grow with the text: of a long one, blocks are kept by reservoir sampling (Vitter's algorithm R) as
    characters, and only as many of them are tokenized as the windows take.
    """
    check_source(source)
    cutter = Cutter(tokenizer, window_tokens)
    keep = max(PLACES, -(-count * cutter.own_tokens * CHARACTERS_PER_TOKEN // PIECE))
    rng = random.Random(seed)
    expected = Path(source).stat().st_size // PIECE if Path(source).is_file() else 0
    kept, seen = _reservoir(
        _blocks(pieces(source)), keep, rng, lambda read: progress("read text", read, max(read, expected))
    )
    for number, block in enumerate(kept):
        if seen > keep:
            cutter.drop_rest()
            if number >= PLACES and len(cutter.windows) >= count:
                break
        cutter.feed(block)
        progress("tokenize text", number + 1, len(kept))
    if len(cutter.windows) < 2:
        raise InputError(
            f"the text must have at least 2 windows of {window_tokens} tokens, {source} has {cutter.tokens} tokens; "
            "give more text"
        )
    return cutter.tensor(rng.sample(range(len(cutter.windows)), min(count, len(cutter.windows))))


Block = list[Piece]


def _blocks(text: Iterable[Piece]) -> Iterator[Block]:
    """Neighbouring pieces, together about as long as a full piece."""
    block: Block = []
    size = 0
    for piece in text:
        block.append(piece)
        size += len(piece)
        if size >= PIECE // 2:
            yield block
            block, size = [], 0
    if block:
        yield block


def _reservoir(
    blocks: Iterable[Block], keep: int, rng: random.Random, report: Callable[[int], None]
) -> tuple[list[Block], int]:
    """`keep` of the blocks, each with the same chance, in random order; or all of them in theirs. And how many came."""
    kept: list[Block] = []
    seen = 0
    for seen, block in enumerate(blocks, 1):
        if len(kept) < keep:
            kept.append(block)
        elif (place := rng.randrange(seen)) < keep:
            kept[place] = block
        if seen % PLACES == 0:
            report(seen)
    if seen > keep:
        rng.shuffle(kept)
    return kept, seen


def manual_windows(tokenizer: Any, count: int, window_tokens: int, use: str) -> Tensor:
    """Up to `count` windows from all over the manual of the Python language, which comes with Python: text at hand
    everywhere, and of another kind than most that is trained on. Each of `USES` has its own third of the windows."""
    cutter = _manual(_Known.of(tokenizer), window_tokens)
    own = range(USES.index(use), len(cutter.windows), len(USES))
    count = min(count, len(own))
    return cutter.tensor(own[number * len(own) // count] for number in range(count))


@dataclass(frozen=True)
class _Known:
    """A tokenizer, and what tells it from others: one that is loaded again is the same."""

    tokenizer: Any = field(compare=False)
    first: tuple[int, ...]
    says: str | int

    @classmethod
    def of(cls, tokenizer: Any) -> _Known:
        fast = getattr(tokenizer, "backend_tokenizer", None)
        return cls(tokenizer, tuple(beginning(tokenizer)), id(tokenizer) if fast is None else fast.to_str())


@lru_cache(maxsize=2)  # a making asks for each use in turn
def _manual(known: _Known, window_tokens: int) -> Cutter:
    from pydoc_data.topics import topics

    cutter = Cutter(known.tokenizer, window_tokens)
    while len(cutter.windows) < len(USES) * FEWEST:  # long windows: the manual again, cut elsewhere
        cutter.feed([topics[name] + "\n\n" for name in sorted(topics)])
    return cutter
