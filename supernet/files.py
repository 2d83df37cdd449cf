"""Tensor files that are written whole or not at all, and read with one line that says what is wrong.

safetensors only: nothing pickled is ever loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from records.atomic import replacing
from records.errors import InputError, MissingError

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
    """Tensors and a JSON object, under a temporary name and then renamed: the bytes that safetensors writes, a tensor
    at a time. What is mapped (`supernet.mapped`) leaves memory again."""
    from supernet.mapped import give_back_pages

    header, ordered = _header(tensors, _as_text(meta or {}))
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for tensor in ordered:
            file.write(_bytes(tensor))
            give_back_pages()


def tensor_bytes(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """What `write_tensors` would write, for files that are named by what is in them."""
    from safetensors.torch import save

    return save(_plain(tensors), _as_text(meta))


def _header(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> tuple[bytes, list[Tensor]]:
    """What stands before the tensors, and those in their order: wide types first, for their alignment."""
    from supernet.mapped import DTYPES

    codes = {dtype: code for code, dtype in DTYPES.items()}
    order = list(DTYPES.values())
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    about: dict[str, Any] = {"__metadata__": dict(meta)}
    at = 0
    for name in names:
        one = tensors[name]
        about[name] = {"dtype": codes[one.dtype], "shape": list(one.shape), "data_offsets": [at, at + one.nbytes]}
        at += one.nbytes
    text = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [tensors[name] for name in names]


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _as_text(meta: Mapping[str, Any]) -> dict[str, str]:
    return {"json": json.dumps(dict(meta))}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON object of `write_tensors`; InputError where the file is cut short or something else."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, read_meta(path)  # noqa: SIM118


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON object alone."""
    with open_tensors(path) as file:
        try:
            return cast(dict[str, Any], json.loads((file.metadata() or {}).get("json", "{}")))
        except (ValueError, RecursionError) as error:
            raise _damaged(path, error) from None


def open_tensors(path: Path) -> Any:
    """A safetensors file whose tensors are read when asked for."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingError(f"no such file: {path}; the supernet is incomplete, train it again")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged ({error}); train the supernet again or copy it again")


@contextmanager
def made_again(path: Path) -> Iterator[None]:
    """InputError where what is read of `path` within is damaged: as such a file is made where there is none, it says
    to remove it."""
    try:
        yield
    except (InputError, KeyError, TypeError, ValueError):
        raise InputError(f"{path} is damaged; remove it, and it is made again") from None
