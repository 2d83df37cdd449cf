"""Records of a data set or a JSON-lines file: what in them is text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from records.errors import InputError

SPEAKERS = {"human": "user", "gpt": "assistant"}  # what `conversations` call the roles
KNOWN = "`text`, `instruction` and `output`, `prompt` and `completion`, `messages` or `conversations`"
Message = Mapping[str, str]


@dataclass(frozen=True)
class Chat:
    """Messages that the model's own chat template turns into text; `where` names the record in errors."""

    messages: tuple[Message, ...]
    where: str

    def __len__(self) -> int:
        """Characters, without what the template adds."""
        return sum(len(message["content"]) for message in self.messages)


Piece = str | Chat


def piece_of(record: Any, where: str) -> Piece:
    """The text of a record; InputError names the record and its fields where none of them is known."""
    if not isinstance(record, Mapping):
        raise InputError(f"a record must be a JSON object, {where} is {type(record).__name__}")
    for names in (("text",), ("instruction", "input", "output"), ("prompt", "completion")):
        if names[0] in record and names[-1] in record:
            return _joined(record, names, where)
    for name in ("messages", "conversations"):
        if name in record:
            return _chat(record[name], name, where)
    raise InputError(f"a record has {KNOWN}, {where} has {', '.join(map(repr, list(record)[:5])) or 'no fields'}")


def _joined(record: Mapping[str, Any], names: tuple[str, ...], where: str) -> str:
    parts = [record[name] for name in names if record.get(name) is not None]
    for part in parts:
        if not isinstance(part, str):
            raise InputError(f"{' and '.join(names)} must be text, {where} has {type(part).__name__}")
    return _encodable("\n".join(part for part in parts if part) + "\n")


def _chat(value: Any, name: str, where: str) -> Chat:
    if not isinstance(value, list) or not value:
        raise InputError(f"`{name}` must be a list of messages, {where} has {value!r:.40}")
    return Chat(tuple(_message(message, where) for message in value), where)


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise InputError(f"a message must be an object with `role` and `content`, {where} has {message!r:.40}")
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise InputError(f"a message must have `role` and `content` as text, {where} has {dict(message)!r:.60}")
    return {"role": SPEAKERS.get(role, role), "content": _encodable(content)}


def _encodable(text: str) -> str:
    """JSON may escape halves of surrogate pairs, which are no characters."""
    return text.encode("utf-8", "replace").decode("utf-8")
