"""Texts that a package's tokenizer and chat template are held to, with what the model's own make of them.

    probes.json   texts: [{text, ids}]; chats: [{messages, text}]; stop_ids

Several scripts, code, numbers, spaces, emoji and the model's own special tokens: where the runtime's tokenizer differs
from the model's, or begins a text otherwise, the package answers another question than was asked.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planner.rows import BROKEN, HOLDS, Row, unchecked
from planner.runtimes.base import Runtime
from records.atomic import write_json
from records.reading import read_record

PROBES = "probes.json"
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces, a\ttab,\n\na blank line and a trailing space ",
    "def f(x: int) -> str:\n    return f'{x:>08.3f}'  # 1234567890 0x1F 3.14159e-10",
    "naïve façade — Größe, ÇĞİŞ; œuvre…",
    "Привет, мир! 你好,世界。こんにちは 안녕하세요 สวัสดี שלום مرحبا नमस्ते",
    "🙂 👩‍👩‍👧 🇪🇺 ½ ² №",
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

    @classmethod
    def load(cls, folder: Path) -> Probes:
        return read_record(folder / PROBES, cls, "list of probes", _REMAKE)


def write_probes(files: Any, folder: Path) -> None:
    """Write `probes.json` by the tokenizer in the supernet's model folder. Transformers is imported here."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(files.model_dir, trust_remote_code=getattr(files, "trusted", False))
    special = " ".join(sorted(set(map(str, tokenizer.all_special_tokens)))[:8])
    texts = [Text(text, tuple(tokenizer(text)["input_ids"])) for text in (*TEXTS, f"a{special}b")]
    chats = []
    if tokenizer.chat_template:
        messages = ({"role": "user", "content": TEXTS[0]},)
        rendered = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        chats.append(Chat(messages, str(rendered)))
    write_json(folder / PROBES, asdict(Probes(tuple(texts), tuple(chats), _stop_ids(files.model_dir))))


def _stop_ids(model_dir: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        path = model_dir / name
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return tuple(sorted({found} if isinstance(found, int) else set(found)))
    return ()


def check_probes(runtime: Runtime, folder: Path, listed: bool) -> list[Row]:
    """Rows on the tokenizer, the chat template and the stop ids of the package in `folder`."""
    names = "tokenizer", "chat template", "stop ids"
    if not listed:
        return [unchecked(name, "probes", None, f"the package has no {PROBES}; {_REMAKE}") for name in names]
    probes = Probes.load(folder)
    ids, chats, stops = runtime.spoken(folder, [t.text for t in probes.texts], [list(c.messages) for c in probes.chats])
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
