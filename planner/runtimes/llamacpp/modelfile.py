"""The Modelfile that makes a package a model of Ollama: `ollama create NAME -f Modelfile`.

Ollama takes the chat template from the GGUF file where it knows it; what a file does not say is here: how long a text
may become, greedy decoding as the package was measured with, and where an answer ends.
"""

from __future__ import annotations

import json
from pathlib import Path

from planner.tokens import TOKENIZER, stop_ids
from records.reading import read_foreign

MODELFILE = "Modelfile"


def write(folder: Path, model_dir: Path, vocab_size: int, context: int, weights: str) -> None:
    """Write it into `folder`, beside the file `weights`."""
    added = {token["id"]: token["content"] for token in read_foreign(model_dir / TOKENIZER).get("added_tokens") or []}
    stops = [added[token] for token in stop_ids(model_dir, model_dir, vocab_size) if token in added]
    lines = [f"FROM ./{weights}", f"PARAMETER num_ctx {context}", "PARAMETER temperature 0"]
    lines += [f"PARAMETER stop {json.dumps(stop)}" for stop in stops]
    (folder / MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
