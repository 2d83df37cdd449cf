"""A weight file of a known size: what is written, and what of a stranger's is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from planner.runtimes.tensor_file import Tensor, TensorFile, header, pieces, read_layout
from records.errors import InputError

TENSORS = (Tensor("b.scale", "F16", (3, 1)), Tensor("a.packed", "U32", (3, 5)), Tensor("a.shape", "I64", (2,)))
HEAD = 512


def written(path: Path, order: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    values = {
        "b.scale": np.arange(3, dtype=np.float16)[:, None],
        "a.packed": np.arange(15, dtype=np.uint32).reshape(3, 5) + 2**31,
        "a.shape": np.array([3, 40]),
    }
    with TensorFile(path, TENSORS[::order], HEAD) as file:
        for name, value in list(values.items())[::order]:
            file.write(name, value)
    return values


def test_the_format_s_own_library_reads_what_is_written(tmp_path: Path) -> None:
    values = written(tmp_path / "a")
    written(tmp_path / "b", order=-1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size == HEAD + 16 + 60 + 6
    found = load_file(tmp_path / "a")
    assert found.keys() == values.keys() and all(np.array_equal(found[name], values[name]) for name in values)


def test_layout_and_pieces_are_read_back(tmp_path: Path) -> None:
    written(tmp_path / "a")
    head, tensors = read_layout(tmp_path / "a")
    assert head == HEAD and [tensor.name for tensor in tensors] == ["a.shape", "a.packed", "b.scale"]
    assert {*tensors} == {*TENSORS}
    assert [(piece.name, piece.offset, piece.bytes) for piece in pieces(tmp_path / "a")] == [
        ("", 0, 512), ("a.shape", 512, 16), ("a.packed", 528, 60), ("b.scale", 588, 6)
    ]  # fmt: skip


def test_a_tensor_that_is_missing_or_of_another_shape_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 tensors were laid out and not written, a\.packed first"):
        TensorFile(tmp_path / "a", TENSORS, HEAD).__exit__(None, None, None)
    with pytest.raises(ValueError, match="shape"), TensorFile(tmp_path / "a", TENSORS, HEAD) as file:
        file.write("a.shape", np.zeros(3))
    with pytest.raises(InputError, match="128 bytes planned"):
        TensorFile(tmp_path / "a", TENSORS, 128)


def entry(kind: str = "F16", shape: Any = (4,), place: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(place)}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"a": entry(place=(2, 10))}, "without gaps"),
        ({"a": entry(place=(0, 4), shape=(2,)), "b": entry(place=(2, 8), shape=(3,))}, "without gaps"),
        ({"a": entry(shape=(3,))}, "bytes of its shape"),
        ({"a": entry(place=(8, 0))}, "bytes of its shape"),
        ({"a": entry(shape=(0,), place=(0, 0))}, "bytes of its shape"),
        ({"a": entry(shape=(2, -2))}, "whole numbers"),
        ({"a": entry(shape=(True, 4))}, "whole numbers"),
        ({"a": entry(shape=(1, 2, 2))}, "whole numbers"),
        ({"a": entry("F8_E4M3")}, "F8_E4M3"),
        ({"../a": entry()}, "may not name"),
        ({"a": {**entry(), "more": 1}}, "type, shape and place"),
        ({"a": []}, "type, shape and place"),
        ({"a": entry(shape=(2,), place=(0, 4))}, "end with its last tensor"),
    ],
)
def test_a_header_that_is_not_the_file_s_is_refused(tmp_path: Path, entries: dict[str, Any], reason: str) -> None:
    damaged(tmp_path / "a", json.dumps(entries).encode())
    with pytest.raises(ValueError, match=reason):
        read_layout(tmp_path / "a")


def damaged(path: Path, text: bytes, length: int | None = None) -> None:
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(8))


def test_a_header_of_another_length_is_refused(tmp_path: Path) -> None:
    text = header([Tensor("a", "F16", (4,))])
    damaged(tmp_path / "a", text)
    assert read_layout(tmp_path / "a")[1] == (Tensor("a", "F16", (4,)),)
    for length in (0, len(text) + 9, 2**63):
        damaged(tmp_path / "a", text, length)
        with pytest.raises(ValueError, match="length of its header"):
            read_layout(tmp_path / "a")
    damaged(tmp_path / "a", text[:-1] + b"," + text[1:-1].partition(b",")[2] + b"}")
    with pytest.raises(ValueError, match="twice"):
        read_layout(tmp_path / "a")
