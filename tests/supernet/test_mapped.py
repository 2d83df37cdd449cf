"""Tensor files: written as safetensors writes them, a tensor at a time, and read page by page."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from supernet.files import read_tensors, write_tensors
from supernet.mapped import DTYPES, MappedTensors, give_back_pages


def some() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2, (3, 40, 5), generator=generator)
    tensors = {f"{name}|\u00e9": values.to(dtype) for name, dtype in DTYPES.items()}
    return tensors | {"none": torch.empty(0, 4), "number": torch.tensor(3.5), "turned": values.float().mT}


def test_what_is_written_is_what_safetensors_writes(tmp_path: Path) -> None:
    meta = {"a": [1, "\u00e9"]}
    write_tensors(tmp_path / "ours", some(), meta)
    save_file({n: t.contiguous() for n, t in some().items()}, tmp_path / "theirs", {"json": json.dumps(meta)})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    tensors, read = read_tensors(tmp_path / "ours")
    assert read == meta
    assert all(torch.equal(tensors[name], value) for name, value in some().items())


def test_mapped_tensors_are_there_again_after_their_pages_were_given_back(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", some())
    mapped, expected = MappedTensors(tmp_path / "file"), load_file(tmp_path / "file")
    read = {name: mapped.get_tensor(name) for name in mapped.keys()}  # noqa: SIM118
    assert read.keys() == expected.keys()
    for _ in range(2):
        assert all(torch.equal(read[name], value) for name, value in expected.items())
        give_back_pages()


def test_pages_that_were_given_back_are_not_resident(tmp_path: Path) -> None:
    write_tensors(tmp_path / "large", {"x": torch.ones(2**24)})
    read = MappedTensors(tmp_path / "large").get_tensor("x")
    assert read.sum() == 2**24
    there = resident()
    give_back_pages()
    assert there - resident() > 60e6
    assert read.sum() == 2**24


def resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)
