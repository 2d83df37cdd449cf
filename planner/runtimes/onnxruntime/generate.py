"""Text from a package, as it is generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from planner.chat import Messages
from planner.runtimes.onnxruntime.settings import CONFIG
from planner.runtimes.onnxruntime.worker import OUT_OF_MEMORY
from planner.runtimes.spoken import Spoken, prompt_ids, spoken
from planner.tokens import Tokenization, token_ids
from records.errors import InputError
from records.reading import read_foreign


def generate(folder: Path, prompt: str, max_tokens: int) -> Iterator[str]:
    """Greedy answer to one user message, in the model's chat format where it has one.

    Text becomes tokens by the model's own tokenizer, so the answer is the model's also where the runtime's differs.
    """
    tokenization = Tokenization(folder)
    limit = int(read_foreign(folder / CONFIG)["search"]["max_length"])
    ids = prompt_ids(folder, tokenization, prompt, limit)
    return tokenization.stream(answer(folder, ids, min(limit, len(ids) + max_tokens)))


def spoken_here(folder: Path, texts: Sequence[str], chats: Sequence[Messages]) -> Spoken:
    """As `PackageFormat.spoken`: what `generate` makes of texts and chats."""
    return spoken(folder, texts, chats, token_ids(read_foreign(folder / CONFIG)["model"].get("eos_token_id")))


def answer(folder: Path, ids: list[int], length: int) -> Iterator[int]:
    """Greedy tokens after `ids`, up to a stop token or `length` in all. InputError where the package does not load."""
    try:
        yield from _generated(folder, ids, length)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if any(words in said for words in OUT_OF_MEMORY):
            raise
        raise InputError(f"a package must load in onnxruntime-genai, {folder} did not: {said}") from None


def _generated(folder: Path, ids: list[int], length: int) -> Iterator[int]:
    import onnxruntime_genai as genai

    model: Any = genai.Model(genai.Config(str(folder)))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=length, do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
        yield int(generator.get_next_tokens()[0])
