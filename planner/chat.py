"""Chat templates, rendered as transformers renders them, in a process that cannot outlive its limits.

A template is code of whoever made the model. jinja2's sandbox keeps it from the system; time and memory it could still
take without end, so it runs in a child process with limits on both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from planner import render, tokens
from records.child import run_child
from records.errors import InputError

TIME_S = 10.0
NOON = datetime(2026, 1, 1, 12)  # what a template is told of the time where its text is compared later
Message = dict[str, str]
Messages: TypeAlias = Sequence[Message]
"""A chat, from its beginning."""


class ChatTemplate:
    """A model's chat template with the special tokens that it may name."""

    def __init__(self, source: str, special: dict[str, str]) -> None:
        self.source = source
        self.special = special

    @classmethod
    def of(cls, folder: Path) -> ChatTemplate | None:
        """The template of the tokenizer in `folder`, None where it has none."""
        source = tokens.chat_template(folder)
        return None if source is None else cls(source, tokens.special_tokens(folder))

    def render(self, chats: Sequence[Messages], now: datetime | None = None) -> list[str | None]:
        """The text of each chat up to where the model answers; None where the template refuses the chat itself.

        `now` is the time that the template sees. InputError where it does not end within TIME_S or is no template.
        """
        request = {
            "source": self.source, "special": self.special, "chats": [list(chat) for chat in chats],
            "now": (now or datetime.now()).isoformat(), "libraries": _libraries(), "seconds": TIME_S,
        }  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [sys.executable, "-I", str(Path(render.__file__).resolve())]
        with tempfile.TemporaryDirectory(prefix="bitfleet-chat-") as scratch:
            try:
                asked = json.dumps(request).encode()
                done = run_child(command, asked, TIME_S * 2, cwd=scratch, env=environment)
            except subprocess.TimeoutExpired:
                raise InputError(f"the chat template must end within {TIME_S:.0f} s, it did not") from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise InputError(f"the chat template cannot be rendered: {said[-1] if said else 'it took too long'}")
        return [None if text is None else str(text) for text in json.loads(done.stdout)]


def _libraries() -> list[str]:
    found = (find_spec(name) for name in ("jinja2", "markupsafe"))
    return sorted({str(Path(spec.origin).resolve().parents[1]) for spec in found if spec and spec.origin})
