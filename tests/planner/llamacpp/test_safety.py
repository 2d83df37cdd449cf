"""What an exporter writes is let pass, and whatever is done to it is refused by name before llama.cpp sees it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest

from planner.runtimes.llamacpp import metadata, safety, tensors
from planner.runtimes.llamacpp.export import write_model
from planner.runtimes.llamacpp.formats import Q2_0, Q4_0, TensorType
from planner.runtimes.llamacpp.header import FLOAT32, STRING, UINT32, Entry, Stored, head, padded
from planner.runtimes.llamacpp.pieces import pieces
from planner.runtimes.llamacpp.serving import Serving
from records.errors import InputError
from supernet.sources.gguf_file import read_head
from tests.planner.llamacpp.models import EVERY, WRITTEN, GridModel, made, mixed

CONTEXT = 256
Heads = tuple[list[Entry], list[Stored]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GridModel:
    return made("qwen2", tmp_path_factory.mktemp("model") / "model")


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


@pytest.mark.parametrize("variant", ["llama, llama3", "qwen2", "phi3, longrope", "gemma2", "gemma3, linear"])
def test_what_is_written_passes_and_is_made_of_its_tensors(variant: str, tmp_path: Path) -> None:
    assert variant in WRITTEN
    files = made(variant, tmp_path / "model")
    (tmp_path / "package").mkdir()
    write_model(files, mixed(files.spec, *EVERY), CONTEXT, 1, tmp_path / "package")
    found = sizes(tmp_path / "package")
    safety.check(tmp_path / "package", found, CONTEXT)
    parts = pieces(tmp_path / "package" / safety.WEIGHTS, found[safety.WEIGHTS])
    assert [part.offset for part in parts] == list(accumulate([0, *(part.bytes for part in parts)]))[:-1]
    assert sum(part.bytes for part in parts) == found[safety.WEIGHTS]
    assert [part.name for part in parts if part.name] == [tensor.name for tensor in tensors.tensors_of(files.spec)]


def test_two_subnets_share_their_metadata(model: GridModel, tmp_path: Path) -> None:
    heads = []
    for name, choices in (("one", EVERY), ("two", EVERY[::-1])):
        (tmp_path / name).mkdir()
        write_model(model, mixed(model.spec, *choices), CONTEXT, 1, tmp_path / name)
        path = tmp_path / name / safety.WEIGHTS
        first = pieces(path, path.stat().st_size)[0]
        heads.append(path.read_bytes()[: first.bytes])
    assert heads[0] == heads[1] and len(heads[0]) > 1000


def write(model: GridModel, folder: Path, change: Callable[[Heads], Heads], kind: TensorType = Q4_0) -> Path:
    """A file of zeros with what an exporter would say of it, but for the `change`."""
    entries = metadata.entries(model.spec, model.model_dir)
    stored = [tensor.stored(None) for tensor in tensors.tensors_of(model.spec)]
    stored = [
        replace(one, type=kind) if len(one.shape) > 1 and tensors.ROUTER not in one.name else one for one in stored
    ]
    entries, stored = change((entries, stored))
    path = folder / safety.WEIGHTS
    path.write_bytes(head(entries, stored) + bytes(sum(padded(one.bytes) for one in stored)))
    return path


def entry(key: str, kind: int, value: object) -> Callable[[Heads], Heads]:
    """With this in place of what was said of the key."""

    def change(heads: Heads) -> Heads:
        kept = [one for one in heads[0] if one.key != key]
        return [*kept, Entry(key, kind, value)], heads[1]  # type: ignore[arg-type]

    return change


def without(key: str) -> Callable[[Heads], Heads]:
    return lambda heads: ([one for one in heads[0] if one.key != key], heads[1])


def tensor(which: str, /, **changes: object) -> Callable[[Heads], Heads]:
    def change(heads: Heads) -> Heads:
        return heads[0], [replace(one, **changes) if one.name == which else one for one in heads[1]]  # type: ignore[arg-type]

    return change


CHANGES: dict[str, tuple[Callable[[Heads], Heads], str]] = {
    "another architecture": (entry("general.architecture", STRING, "rwkv7"), "architecture"),
    "an alignment": (entry("general.alignment", UINT32, 16), "tensors end at|general.alignment"),
    "an unknown key": (entry("qwen2.expert_count", UINT32, 8), "expert_count"),
    "a key of the wrong type": (entry("qwen2.rope.freq_base", UINT32, 10000), "freq_base"),
    "an infinite number": (entry("qwen2.rope.freq_base", FLOAT32, float("inf")), "freq_base"),
    "too many layers": (entry("qwen2.block_count", UINT32, 10**6), "block_count"),
    "more layers than there are": (entry("qwen2.block_count", UINT32, 3), "blk.2"),
    "no heads": (entry("qwen2.attention.head_count_kv", UINT32, 0), "head_count_kv"),
    "heads that do not divide": (entry("qwen2.attention.head_count_kv", UINT32, 3), "multiple"),
    "a short context": (entry("qwen2.context_length", UINT32, 100), "room for 100 tokens"),
    "a token beyond the table": (entry("tokenizer.ggml.bos_token_id", UINT32, 320), "bos_token_id"),
    "too few tokens": (entry("tokenizer.ggml.tokens", STRING, ["a"]), "320 rows"),
    "another tokenizer": (entry("tokenizer.ggml.model", STRING, "t5"), "tokenizer.ggml.model"),
    "a kind of tokens": (entry("tokenizer.ggml.token_type", 5, [7] * 320), "from 1 to 6"),
    "no tokens": (without("tokenizer.ggml.tokens"), "must set tokenizer.ggml.tokens"),
    "another shape": (tensor("blk.1.ffn_up.weight", shape=(64, 256)), "blk.1.ffn_up.weight"),
    "another tensor": (tensor("blk.1.ffn_up.weight", name="blk.1.ffn_up.scale"), "blk.1.ffn_up.scale"),
    "a float matrix": (tensor("blk.1.ffn_up.weight", type=TensorType("F32", 0, 1, 4)), "GGML type 0"),
    "a quantized norm": (tensor("blk.1.attn_norm.weight", type=Q4_0), "GGML type 2"),
    "a type that nobody writes": (tensor("blk.1.ffn_up.weight", type=TensorType("IQ4_NL", 20, 32, 18)), "type 20"),
}


def test_the_file_that_is_changed_below_passes(model: GridModel, tmp_path: Path) -> None:
    safety.check_gguf(write(model, tmp_path, lambda heads: heads), CONTEXT)


@pytest.mark.parametrize("name", CHANGES)
def test_what_no_exporter_writes_is_refused(name: str, model: GridModel, tmp_path: Path) -> None:
    change, reason = CHANGES[name]
    with pytest.raises(ValueError, match=reason):
        safety.check_gguf(write(model, tmp_path, change), CONTEXT)


EXPERTS: dict[str, tuple[Callable[[Heads], Heads], str]] = {
    "as a dense model": (without("llama.expert_count"), "expert_used_count"),
    "more chosen than there are": (entry("llama.expert_used_count", UINT32, 5), "no more experts"),
    "more experts than there are": (entry("llama.expert_count", UINT32, 5), "shape"),
    "a quantized router": (tensor("blk.1.ffn_gate_inp.weight", type=Q4_0), "GGML type 2"),
    "a matrix of one expert": (tensor("blk.1.ffn_up_exps.weight", shape=(256, 64)), "blk.1.ffn_up_exps.weight"),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_that_no_exporter_writes_are_refused(name: str, tmp_path: Path) -> None:
    change, reason = EXPERTS[name]
    model = made("mixtral", tmp_path / "model")
    safety.check_gguf(write(model, tmp_path, lambda heads: heads), CONTEXT)
    with pytest.raises(ValueError, match=reason):
        safety.check_gguf(write(model, tmp_path, change), CONTEXT)


def test_the_other_layout_of_two_bits_is_refused_by_its_size(model: GridModel, tmp_path: Path) -> None:
    other = TensorType("Q2_0", 42, 64, 17)  # as many bytes as blocks of 128 weights in 34
    path = write(model, tmp_path, lambda heads: heads, other)
    with pytest.raises(ValueError, match="blocks of 128"):
        safety.check_gguf(path, CONTEXT)
    safety.check_gguf(write(model, tmp_path, lambda heads: heads, Q2_0), CONTEXT)


def test_tensors_neither_overlap_nor_leave_gaps_nor_end_early(model: GridModel, tmp_path: Path) -> None:
    path = write(model, tmp_path, lambda heads: heads)
    whole = path.read_bytes()
    name = b"blk.1.ffn_up.weight"
    at = whole.index(name) + len(name) + struct.calcsize("<IQQI")
    (offset,) = struct.unpack_from("<Q", whole, at)
    for moved in (offset - 32, offset + 32, 2**63, 0):
        path.write_bytes(whole[:at] + struct.pack("<Q", moved) + whole[at + 8 :])
        with pytest.raises(ValueError, match=r"blk\.1|cut short"):
            safety.check_gguf(path, CONTEXT)
    path.write_bytes(whole + bytes(32))
    with pytest.raises(ValueError, match="tensors end at"):
        safety.check_gguf(path, CONTEXT)
    for size in (*range(0, 400, 7), read_head(path, safety.SIZES).start, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            safety.check_gguf(path, CONTEXT)


@pytest.mark.parametrize(
    "line",
    ["FROM llama3", "ADAPTER ./b.gguf", "FROM ./model.gguf\rADAPTER x", "PARAMETER stop no", "FROM ../model.gguf"],
)
def test_a_modelfile_says_nothing_else(line: str, model: GridModel, tmp_path: Path) -> None:
    write(model, tmp_path, lambda heads: heads)
    Serving(CONTEXT, 1, (2,)).save(tmp_path)
    (tmp_path / safety.TOKENIZER).write_text("{}")
    path = tmp_path / "Modelfile"
    path.write_text('FROM ./model.gguf\nPARAMETER num_ctx 256\nPARAMETER stop "<|im_end|>"\n')
    safety.check(tmp_path, sizes(tmp_path), CONTEXT)
    path.write_text(f"FROM ./model.gguf\n{line}\n")
    with pytest.raises(InputError, match="Modelfile"):
        safety.check(tmp_path, sizes(tmp_path), CONTEXT)


@pytest.mark.parametrize("name", ["libggml.so", "other.gguf", "run.py"])
def test_other_files_are_refused(name: str, model: GridModel, tmp_path: Path) -> None:
    listed = dict.fromkeys((*safety.REQUIRED, name), 1)
    with pytest.raises(InputError, match=name):
        safety.check(tmp_path, listed, CONTEXT)
