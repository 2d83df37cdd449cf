"""The model's tokenizer in a package.

The files are written by transformers: what it loads a folder as is not always what the folder's tokenizer.json says
(classes add tokens and normalizers of their own).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from planner.tokens import model_tokenizer

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja",
)  # fmt: skip


def write_tokenizer(model_dir: Path, context: int, folder: Path, trusted: bool = False) -> None:
    """Save the tokenizer in `model_dir` into the package in `folder`: files of known names, and no others."""
    tokenizer = model_tokenizer(model_dir, trusted)
    tokenizer.model_max_length = context  # "no limit" is written as a number that few readers take
    with tempfile.TemporaryDirectory(prefix="bitfleet-tokenizer-") as scratch:
        tokenizer.save_pretrained(scratch)
        for name in FILES:
            if (Path(scratch) / name).is_file():
                shutil.copyfile(Path(scratch) / name, folder / name)
