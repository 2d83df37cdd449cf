"""What a package's tokenizer and chat template make of texts and messages, whatever runtime loads the rest of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.chat import NOON, ChatTemplate
from planner.tokens import Tokenization
from records.errors import InputError


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
