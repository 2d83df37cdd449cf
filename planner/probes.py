"""Texts that a package's tokenizer and chat template are held to, with what the model's own make of them.

    probes.json   texts: [{text, ids}]; chats: [{messages, text}]; stop_ids

Several scripts, code, numbers, spaces, emoji and the model's own special tokens: where the runtime's tokenizer differs
from the model's, or begins a text otherwise, the package answers another question than was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from planner.chat import NOON, ChatTemplate, Message
from planner.rows import BROKEN, HOLDS, Row, unchecked
from planner.runtimes.base import Runtime
from planner.runtimes.source import WeightSource
from planner.tokens import PROBES as PROBES_OF_TEXT
from planner.tokens import Tokenization, model_tokenizer, stop_ids
from records.atomic import write_json
from records.errors import InputError, NotInstalledError
from records.reading import read_record

PROBES = "probes.json"
CHATS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hello!"},),
    ({"role": "user", "content": ""},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2? 😀 你好"}),
    (
        {"role": "user", "content": "  Name a colour.\n"},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another <b>one</b>, please"},
    ),
)
_REMAKE = "export it again with `bitfleet export plan.json --out DIR`"


@dataclass(frozen=True)
class Text:
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Chat:
    messages: tuple[dict[str, str], ...]
    text: str


@dataclass(frozen=True)
class Probes:
    """What the model's own tokenizer makes of texts and chats, and the ids that end an answer, smallest first."""

    texts: tuple[Text, ...]
    chats: tuple[Chat, ...]
    stop_ids: tuple[int, ...]
    runtime_differs: tuple[str, ...] | None = ()
    """What the runtime's own tokenizer, which others may load, does otherwise; None where it was not asked."""

    @property
    def note(self) -> str | None:
        """What to tell who loads the package by other means than `bitfleet run`; None where there is nothing."""
        if not self.runtime_differs:
            return None
        count, total = len(self.runtime_differs), len(self.texts) + len(self.chats)
        return (
            f"with the runtime's own tokenizer and template {count} of {total} probes differ, "
            f"{self.runtime_differs[0]!r:.40} among them; `bitfleet run` uses the model's own"
        )

    @classmethod
    def load(cls, folder: Path) -> Probes:
        return read_record(folder / PROBES, cls, "list of probes", _REMAKE)


def write_probes(runtime: Runtime, files: WeightSource, folder: Path) -> None:
    """Write `probes.json` by the tokenizer in the supernet's model folder. Transformers is imported here.

    InputError where the package's tokenizer or template does otherwise: it would ask the model another question.
    """
    tokenizer = model_tokenizer(files.model_dir, files.trusted)
    special = " ".join(sorted(set(map(str, tokenizer.all_special_tokens)))[:8])
    texts = tuple(Text(text, tuple(tokenizer(text)["input_ids"])) for text in (*PROBES_OF_TEXT, f"a{special}b"))
    template = ChatTemplate.of(folder)
    now, chats = datetime.now(), CHATS if tokenizer.chat_template else ()
    wanted = [_rendered(tokenizer, chat) for chat in chats]
    found = template.render(chats, now) if template and chats else [None] * len(chats)
    at_noon = template.render(chats, NOON) if template and chats else []
    kept = tuple(Chat(chat, text) for chat, text in zip(chats, at_noon, strict=False) if text is not None)
    ours = Tokenization(folder)
    wrong = [text.text for text in texts if ours.encode(text.text) != list(text.ids)]
    wrong += [chat[-1]["content"] for chat, a, b in zip(chats, wanted, found, strict=True) if a != b]
    if wrong:
        raise InputError(
            f"tokenizer.json and the chat template must do what the model's tokenizer does, {len(wrong)} of "
            f"{len(texts) + len(chats)} probes differ, {wrong[0]!r:.40} first; save it with transformers"
        )
    made = Probes(texts, kept, tuple(sorted(stop_ids(files.model_dir, folder, files.spec.vocab_size))))
    write_json(folder / PROBES, asdict(replace(made, runtime_differs=_differs(runtime, folder, texts, kept))))


def _differs(runtime: Runtime, folder: Path, texts: Sequence[Text], chats: Sequence[Chat]) -> tuple[str, ...] | None:
    """Of which of these the runtime's own tokenizer makes something else; None where the runtime is not here."""
    try:
        engine = runtime.engine()
    except NotInstalledError:
        engine = None
    if engine is None:
        return None
    ids, others, _ = engine.speaker(folder).spoken([text.text for text in texts], [chat.messages for chat in chats])
    differs = [text.text for text, found in zip(texts, ids, strict=True) if list(text.ids) != found]
    differs += [chat.messages[-1]["content"] for chat, found in zip(chats, others, strict=True) if chat.text != found]
    return tuple(differs)


def _rendered(tokenizer: Any, chat: Sequence[Message]) -> str | None:
    """What transformers renders; None where the template refuses the chat."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, tokenize=False))
    except TemplateError:
        return None


def check_probes(runtime: Runtime, folder: Path, listed: bool) -> list[Row]:
    """Rows on the tokenizer, the chat template and the stop ids of the package in `folder`."""
    names = "tokenizer", "chat template", "stop ids"
    if not listed:
        return [unchecked(name, "probes", None, f"the package has no {PROBES}; {_REMAKE}") for name in names]
    probes = Probes.load(folder)
    asked = [text.text for text in probes.texts], [chat.messages for chat in probes.chats]
    ids, chats, stops = runtime.packages.spoken(folder, *asked)
    wrong = [text.text for text, found in zip(probes.texts, ids, strict=True) if list(text.ids) != found]
    rows = [_row(names[0], len(probes.texts), wrong, "other tokens than the model's for")]
    if probes.chats:
        wrong = [str(found) for chat, found in zip(probes.chats, chats, strict=True) if chat.text != found]
        rows.append(_row(names[1], len(probes.chats), wrong, "another text than the model's:"))
    wrong = [] if tuple(sorted(stops)) == probes.stop_ids else [f"{sorted(stops)} for {list(probes.stop_ids)}"]
    rows.append(_row(names[2], 1, wrong, "not the model's:"))
    return rows


def _row(name: str, count: int, wrong: list[str], said: str) -> Row:
    note = f"{said} {wrong[0]!r:.60}" if wrong else "as the model's own"
    return Row(name, "probes", count, count - len(wrong), verdict=BROKEN if wrong else HOLDS, note=note)
