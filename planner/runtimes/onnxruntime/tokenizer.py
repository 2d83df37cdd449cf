"""How onnxruntime-genai's own tokenizer reads the probes: who loads a package by other means than `run` gets that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner import probes
from planner.probes import Probes


def write_probes(model_dir: Path, folder: Path, trusted: bool = False) -> None:
    """Write the probes of the tokenizer in `model_dir` into the package in `folder`, compared with both tokenizers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trusted)
    made = probes.make(tokenizer, folder)
    replace(made, runtime_differs=tuple(runtime_differs(made, folder))).write(folder)


def runtime_differs(made: Probes, folder: Path) -> list[str]:
    import onnxruntime_genai as genai

    try:
        tokenizer: Any = genai.Tokenizer(genai.Config(str(folder)))
        tokenizer.update_options(add_special_tokens="true")
    except Exception:  # it raises plain exceptions for every kind that it does not know
        return ["all of them"] * (len(made.texts) + len(made.chats))
    found = probes.compared(made.texts, made.ids, tokenizer.encode)
    try:
        tokenizer.update_options(add_special_tokens="false")
    except Exception:
        return found
    for chat, wanted in zip(made.chats, made.chat_ids, strict=True):
        try:
            text = tokenizer.apply_chat_template(json.dumps(list(chat)), add_generation_prompt=True)
            ids: tuple[int, ...] | None = tuple(int(token) for token in tokenizer.encode(text))
        except Exception:
            ids = None
        found += [] if ids == wanted else [f"the chat {chat[-1]['content']!r:.30}"]
    return found
