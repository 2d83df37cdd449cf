"""The Modelfile that makes a package a model of Ollama: `ollama create NAME -f Modelfile`.

Ollama takes the chat template from the GGUF file where it knows it; what a file does not say is here: how long a text
may become, how many layers are on a GPU, greedy decoding as the package was measured with, and where an answer ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from planner.runtimes.llamacpp.serving import WEIGHTS
from planner.tokens import TOKENIZER
from records.reading import read_foreign

MODELFILE = "Modelfile"


def write(folder: Path, stops: Sequence[int], context: int, gpu_layers: int | None = None) -> None:
    """Write it into `folder`, beside the weights and the tokenizer of tokenizer.json."""
    added = {token["id"]: token["content"] for token in read_foreign(folder / TOKENIZER).get("added_tokens") or []}
    lines = [f"FROM ./{WEIGHTS}", f"PARAMETER num_ctx {context}", "PARAMETER temperature 0"]
    lines += [] if gpu_layers is None else [f"PARAMETER num_gpu {gpu_layers}"]
    lines += [f"PARAMETER stop {text}" for token in stops if (text := quoted(added.get(token, ""))) is not None]
    (folder / MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def quoted(text: str) -> str | None:
    """A text as Ollama reads one: it takes the quotes away and knows no escapes, so within them stands what is meant.

    None for what cannot be said: an empty text, one that begins or ends in a quote or has three, and what is not
    printed, which Ollama passes over.
    """
    if not text or '"""' in text or '"' in (text[0], text[-1]) or not text.isprintable():
        return None
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def unquoted(value: str) -> str | None:
    """The text that a line written by `quoted` gives Ollama; None for any other line."""
    text = value.removeprefix('"""').removesuffix('"""') if value.startswith('"""') else value[1:-1]
    return text if quoted(text) == value else None
