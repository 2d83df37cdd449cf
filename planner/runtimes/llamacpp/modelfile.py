"""The Modelfile that makes a package a model of Ollama: `ollama create NAME -f Modelfile`.

Ollama takes the chat template from the GGUF file where it knows it; what a file does not say is here: how long a text
may become, greedy decoding as the package was measured with, and where an answer ends.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from planner.runtimes.llamacpp.serving import WEIGHTS
from planner.tokens import TOKENIZER
from records.reading import read_foreign

MODELFILE = "Modelfile"


def write(folder: Path, stops: Sequence[int], context: int) -> None:
    """Write it into `folder`, beside the weights and the tokenizer of tokenizer.json."""
    added = {token["id"]: token["content"] for token in read_foreign(folder / TOKENIZER).get("added_tokens") or []}
    lines = [f"FROM ./{WEIGHTS}", f"PARAMETER num_ctx {context}", "PARAMETER temperature 0"]
    lines += [f"PARAMETER stop {json.dumps(added[token])}" for token in stops if token in added]
    (folder / MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
