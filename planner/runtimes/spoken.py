"""What a package's tokenizer and chat template make of texts and messages, whatever runtime loads the rest of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.chat import NOON, ChatTemplate
from planner.tokens import Tokenization
from records.errors import InputError


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


def ids_and_chats(folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any]]:
    """Token ids of each text and the text of each list of messages; where there is none, a line that says why."""
    ids: list[Any]
    rendered: list[Any]
    try:
        tokenization = Tokenization(folder)
        ids = [tokenization.encode(text) for text in texts]
    except InputError as error:
        ids = [str(error)] * len(texts)
    try:
        template = ChatTemplate.of(folder)
        rendered = template.render(chats, NOON) if template and chats else ["the package has no template"] * len(chats)
    except InputError as error:
        rendered = [str(error)] * len(chats)
    return ids, rendered
