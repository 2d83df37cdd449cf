"""llama.cpp on tiny models of every type that is written: what it says is held against itself, task by task."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from planner.runtimes.llamacpp import fresh, installed, random_gguf
from planner.runtimes.llamacpp.runtime import LlamaCpp
from planner.runtimes.llamacpp.serving import LIBRARY, SETTINGS, WEIGHTS, Serving
from planner.runtimes.shapes import Shape
from records.child import run_child
from records.errors import InputError, MissingError, NotInstalledError, SystemFailure
from supernet.formats import FORMATS
from supernet.space import Choice, Subnet

pytestmark = pytest.mark.skipif(find_spec(LIBRARY) is None, reason=f"needs {LIBRARY}: pip install 'bitfleet[llamacpp]'")

TINY = Shape("tiny", 2, 64, 192, 4, 2, 32, 512)
TABLE = Choice(8, 32, "sym")
BLOCKS = replace(TINY, name="tiny blocks", hidden=256, feed_forward=256, head_dim=64)  # rows of K types
K_CHOICES = tuple(Choice(bits, FORMATS["k"].group_size(bits), "k") for bits in FORMATS["k"].widths)
CHOICES = (Choice(2, 64, "sym"), Choice(4, 32, "sym"), Choice(4, 32), Choice(5, 32, "sym"), Choice(5, 32), TABLE)
WINDOWS = np.random.default_rng(1).integers(0, TINY.vocabulary, (2, 150))


def package(folder: Path, choice: Choice, shape: Shape = TINY, context: int = 300) -> Path:
    units = shape.spec().units
    return random_gguf.write(
        shape, Subnet.of({u.name: TABLE if u.is_table else choice for u in units}), context, 1, folder
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tmp_path_factory.mktemp("tiny") / "package", CHOICES[1])


@pytest.mark.parametrize("choice", (*CHOICES, *K_CHOICES), ids=str)
def test_every_type_loads_and_says_the_same_twice(tmp_path: Path, choice: Choice) -> None:
    folder = package(tmp_path / "package", choice, BLOCKS if choice in K_CHOICES else TINY)
    first, second = fresh.logits(folder, WINDOWS), fresh.logits(folder, WINDOWS)
    assert first.shape == (*WINDOWS.shape, TINY.vocabulary) and first.dtype == np.float32
    assert np.isfinite(first).all() and first.std() > 0.1
    assert (first == second).all()


def test_a_window_longer_than_a_chunk_is_read_as_one_text(tiny: Path) -> None:
    """Tokens of the second chunk see those of the first: another beginning changes them."""
    changed = WINDOWS.copy()
    changed[:, 0] = (changed[:, 0] + 1) % TINY.vocabulary
    last = [fresh.logits(tiny, windows)[:, -1] for windows in (WINDOWS, changed)]
    assert (last[0] != last[1]).any(axis=-1).all()
    alone = fresh.logits(tiny, WINDOWS[1:])
    assert (alone[0, :, :] == fresh.logits(tiny, WINDOWS)[1]).all()  # the window before it is forgotten


def test_log_probs_are_those_of_the_logits(tiny: Path) -> None:
    logits = fresh.logits(tiny, WINDOWS).astype(np.float64)
    wanted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    positions, ids = np.array([3, 130, 149, 150, 299]), np.arange(10).reshape(5, 2)
    found, likeliest = fresh.log_probs(tiny, list(WINDOWS), positions, ids, 60.0)
    rows = wanted.reshape(-1, TINY.vocabulary)[positions]
    assert np.abs(found - np.take_along_axis(rows, ids, 1)).max() < 1e-4
    assert likeliest.tolist() == rows.argmax(-1).tolist()
    done, _ = fresh.log_probs(tiny, list(WINDOWS), positions, ids, 0.0)
    assert 0 < len(done) < len(positions)


def test_greedy_text_is_the_argmax_of_the_logits(tiny: Path) -> None:
    prompts = WINDOWS[:, :140]
    found = fresh.continued(tiny, prompts, 8)
    for prompt, answer in zip(prompts, found, strict=True):
        whole = np.concatenate([prompt, answer])[None]
        likeliest = fresh.logits(tiny, whole)[0].argmax(-1)
        assert len(answer) == 8 and answer == likeliest[len(prompt) - 1 : -1].tolist()


def test_it_stops_where_the_package_says(tiny: Path, tmp_path: Path) -> None:
    (answer,) = fresh.continued(tiny, WINDOWS[:1, :9], 8)
    (tmp_path / WEIGHTS).symlink_to(tiny / WEIGHTS)
    replace(Serving.load(tiny), stop_ids=(answer[2],)).save(tmp_path)
    assert fresh.continued(tmp_path, WINDOWS[:1, :9], 8) == [answer[: answer.index(answer[2]) + 1]]


@pytest.mark.parametrize("batch", [1, 3])
def test_serving_is_measured(tiny: Path, batch: int) -> None:
    found = fresh.measure(tiny, 32, 256, batch, new_tokens=6, repeats=1)
    assert found.peak_bytes >= found.loaded_bytes > (tiny / WEIGHTS).stat().st_size
    assert found.tpot_ms > 0 and found.ttft_ms > 0
    assert np.isnan(fresh.measure(tiny, 255, 256, batch, new_tokens=1, repeats=1).tpot_ms)


def test_as_many_sequences_as_there_may_be_are_served_whatever_the_context(tiny: Path) -> None:
    assert fresh.measure(tiny, 8, 32, LlamaCpp.most_sequences, new_tokens=2, repeats=1).tpot_ms > 0
    with pytest.raises(InputError, match="n_seq_max must be <= 256"):
        fresh.measure(tiny, 8, 32, LlamaCpp.most_sequences + 1, new_tokens=2, repeats=1)


def test_every_kind_of_cache_serves(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).symlink_to(tiny / WEIGHTS)
    sure = fresh.logits(tiny, WINDOWS)
    for kind, most in (("q8_0", 0.2), ("q4_0", 3.0)):
        replace(Serving.load(tiny), kv_type=kind).save(tmp_path)
        assert 0 < np.abs(fresh.logits(tmp_path, WINDOWS) - sure).max() < most


def test_an_answer_is_streamed_token_by_token(tiny: Path, tmp_path: Path) -> None:
    words = {f"w{i}": i for i in range(TINY.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / WEIGHTS).symlink_to(tiny / WEIGHTS)
    Serving(40, 1, ()).save(tmp_path)
    prompt = WINDOWS[0, :9]
    pieces = list(fresh.generate(tmp_path, " ".join(f"w{token}" for token in prompt), 5))
    (wanted,) = fresh.continued(tiny, prompt[None], 5)
    assert len(pieces) > 1 and "".join(pieces).split() == [f"w{token}" for token in wanted]
    begun = fresh.generate(tmp_path, "w1 w2", 20)
    next(begun)
    begun.close()  # type: ignore[attr-defined]  # the process ends with its reader
    with pytest.raises(InputError, match="shorter than the package's context of 40 tokens, got 40"):
        list(fresh.generate(tmp_path, "w1 " * 40, 5))


def test_its_own_tokenizer_speaks(tiny: Path) -> None:
    ids, _, stops = fresh.spoken_by_others(tiny, ["ab", "", "a" * 600], [])
    assert stops == [TINY.vocabulary - 1]
    letters = {chr(c): i for i, c in enumerate(range(33, 127))}
    assert ids == [[letters["a"], letters["b"]], [], [letters["a"]] * 600]


@pytest.mark.parametrize("spoil", ["cut", "no GGUF", "an unknown type"])
def test_what_does_not_load_is_one_line(tiny: Path, tmp_path: Path, spoil: str) -> None:
    data = (tiny / WEIGHTS).read_bytes()
    if spoil == "cut":
        data = data[: len(data) // 2]
    elif spoil == "no GGUF":
        data = b"x" * 1000
    else:
        at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
        data = data[:at] + (250).to_bytes(4, "little") + data[at + 4 :]
    (tmp_path / WEIGHTS).write_bytes(data)
    (tmp_path / SETTINGS).write_bytes((tiny / SETTINGS).read_bytes())
    with pytest.raises(InputError, match=r"must load in llama.cpp, .* did not: LlamaError") as error:
        fresh.logits(tmp_path, WINDOWS)
    assert "\n" not in str(error.value) and len(str(error.value)) < 800


def test_tokens_beyond_the_vocabulary_are_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match="did not: LlamaError"):
        fresh.logits(tiny, WINDOWS + TINY.vocabulary)
    with pytest.raises(InputError, match="tokens must be below the vocabulary of 512, got 512"):
        fresh.log_probs(tiny, list(WINDOWS), np.array([1]), np.array([[512]]), 9.0)


def test_where_memory_ends_the_system_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of half a gigabyte in an address space of 400 MB; a tiny one has room there."""
    limit = 400 * 2**20

    def limited(command: list[str], **options: Any) -> Any:
        return run_child(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)), **options)

    monkeypatch.setattr("planner.runtimes.child.run_child", limited)
    folder = package(tmp_path / "package", CHOICES[1])
    assert fresh.measure(folder, 8, 256, new_tokens=2, repeats=1).peak_bytes < limit
    with pytest.raises(SystemFailure, match=r"has no room to load .*failed to allocate"):
        fresh.measure(folder, 8, 2**20, new_tokens=2, repeats=1)


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="settings"):
        Serving.load(tmp_path)
    for wrong in ('{"context": 0, "threads": 1, "stop_ids": []}', '{"context": 9, "threads": 1, "stop_ids": [-1]}',
                  '{"context": 9, "threads": 1, "stop_ids": [], "kv_type": "f64"}'):  # fmt: skip
        (tmp_path / SETTINGS).write_text(wrong)
        with pytest.raises(InputError, match="export it again"):
            Serving.load(tmp_path)


def test_another_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed.metadata, "version", lambda name: "2027.1.1")
    with pytest.raises(NotInstalledError, match=r"needs xllamacpp 2026.10.11549, 2027.1.1 is installed; run: pip"):
        installed.check_installed()


def test_a_random_file_is_what_the_gguf_package_reads(tiny: Path) -> None:
    reader: Any = pytest.importorskip("gguf").GGUFReader(tiny / WEIGHTS)
    names: Iterator[str] = (tensor.name for tensor in reader.tensors)
    laid = random_gguf.stored(TINY, Subnet.of({u.name: TABLE for u in TINY.spec().units}))
    assert list(names) == [tensor.name for tensor in laid]
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == TINY.vocabulary
