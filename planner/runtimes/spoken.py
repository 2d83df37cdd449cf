"""What a package's tokenizer and chat template make of texts and messages, whatever runtime loads the rest of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from planner.chat import NOON, ChatTemplate, Messages
from planner.tokens import Tokenization
from records.errors import InputError

REFUSED = "the package's chat template refuses a chat"


class Spoken(NamedTuple):
    """Token ids of each text, the chat template's text for each chat, and the ids that end an answer; where a package
    has no answer, a line that says why stands for it."""

    ids: list[list[int] | str]
    chats: list[str]
    stop_ids: list[int]


def prompt_ids(folder: Path, tokenization: Tokenization, prompt: str, context: int) -> list[int]:
    """One user's message as the model was taught to read one: through its template, or as plain text.

    InputError where it is empty, or leaves no room in the package's `context`.
    """
    template = ChatTemplate.of(folder)
    if template is None:
        ids = tokenization.encode(prompt)
    else:
        (text,) = template.render([[{"role": "user", "content": prompt}]])
        if text is None:
            raise InputError("the package's chat template refuses a single message of a user")
        ids = tokenization.encode(text, special=False)
    if not ids:
        raise InputError("the prompt must have at least one token, this one is empty and the model begins with none")
    if len(ids) >= context:
        raise InputError(f"the prompt must be shorter than the package's context of {context} tokens, got {len(ids)}")
    return ids


def spoken(folder: Path, texts: Sequence[str], chats: Sequence[Messages], stop_ids: list[int]) -> Spoken:
    """As `PackageFormat.spoken`, of a package that ends its answers with `stop_ids`."""
    return Spoken(_encoded(folder, texts), _rendered(folder, chats), stop_ids)


def _encoded(folder: Path, texts: Sequence[str]) -> list[list[int] | str]:
    try:
        tokenization = Tokenization(folder)
        return [tokenization.encode(text) for text in texts]
    except InputError as error:
        return [str(error)] * len(texts)


def _rendered(folder: Path, chats: Sequence[Messages]) -> list[str]:
    try:
        template = ChatTemplate.of(folder)
        if template is None or not chats:
            return ["the package has no template"] * len(chats)
        texts = template.render(chats, NOON)
    except InputError as error:
        return [str(error)] * len(chats)
    return [REFUSED if text is None else text for text in texts]
