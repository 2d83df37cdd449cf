"""Tensor files that are written whole or not at all, and read with one line that says what is wrong.

safetensors only: nothing pickled is ever loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
    """Tensors and a JSON object, under a temporary name and then renamed."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary, {"json": json.dumps(dict(meta or {}))})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON object of `write_tensors`; ValueError where the file is cut short or something else."""
    with open_tensors(path) as file:
        meta = json.loads((file.metadata() or {}).get("json", "{}"))
        return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118


def open_tensors(path: Path) -> Any:
    """A safetensors file whose tensors are read when asked for."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; the supernet is incomplete, train it again")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); train the supernet again or copy it again") from None


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class replacing:
    """`with replacing(path) as temporary`: the file appears under its name only when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: Any, *rest: Any) -> None:
        try:
            if kind is None:
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
