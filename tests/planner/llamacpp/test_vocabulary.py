"""llama.cpp cuts every probe into the tokens that the model's own tokenizer cuts it into, or the tokenizer is refused.

The tokenizers are trained here on the probes themselves, so that merges of many scripts, spaces and digits are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from planner.runtimes.llamacpp import cuts, fresh, vocabulary
from planner.runtimes.llamacpp.header import STRING, Entry, head
from planner.runtimes.llamacpp.serving import WEIGHTS, Serving
from planner.tokens import PROBES, Tokenization
from records.errors import InputError, MissingError

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
BESIDE = ["", " ", "  ", "\n", "\t ", "<|im_start|>", "<|im_start|>\n", "</s> ", "<s> ", "<|endoftext|>  "]
WORDS = ["hello", "Hello  world", "été", "你好", "😀 é", "x = 1234", "...", "don't"]
AROUND = [f"{before}{word}{after}" for before in BESIDE for word in WORDS for after in BESIDE]
TEXTS = [*PROBES, "import os\n\n\tdef f(self, x=10):\n\t\treturn  x + 1234\n"] * 3
ByteLevel = pre_tokenizers.ByteLevel


def byte_level(cutter: Any, **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer, tokenizer.decoder = cutter, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=ByteLevel.alphabet(), special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def by_pattern(pattern: str, **options: Any) -> Tokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return byte_level(pre_tokenizers.Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)]), **options)


def sentencepiece(normalizer: Any, cutter: Any) -> Tokenizer:
    """With merges as SentencePiece implies them: every two pieces that make a third, in the order of the third."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, cutter
    first = ["<unk>", *SPECIAL, *BYTES]
    texts = [text.replace("\0", "") for text in TEXTS]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=900, special_tokens=first, show_progress=False, max_token_length=9)
    )
    described = json.loads(tokenizer.to_str())
    vocab = described["model"]["vocab"]
    pieces = sorted(vocab.keys() - set(first), key=vocab.get)
    pairs = [[piece[:cut], piece[cut:]] for piece in pieces for cut in range(1, len(piece))]
    described["model"]["merges"] = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
    described["added_tokens"] = [t for t in described["added_tokens"] if t["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(described))


def phi3() -> Tokenizer:
    """Special tokens take the spaces after them, but for three."""
    described = json.loads(sentencepiece(prefixed(), None).to_str().replace("<|im_end|>", "<|endoftext|>"))
    for token in described["added_tokens"]:
        token["rstrip"] = token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    return Tokenizer.from_str(json.dumps(described))


def digits() -> Any:
    each = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([each, ByteLevel(add_prefix_space=False)])


def spaces() -> Any:
    return normalizers.Replace(" ", cuts.SPACE)


def prefixed() -> Any:
    return normalizers.Sequence([normalizers.Prepend(cuts.SPACE), spaces()])


TOKENIZERS: dict[str, tuple[str, Callable[[], Tokenizer]]] = {
    "gpt2": ("gpt-2", lambda: byte_level(ByteLevel(add_prefix_space=False))),
    "smollm": ("smollm", lambda: byte_level(digits())),
    "llama 3": ("llama-bpe", lambda: by_pattern(cuts.THREE_DIGITS, ignore_merges=True)),
    "gpt-4": ("dbrx", lambda: by_pattern(cuts.THREE_DIGITS)),
    "qwen": ("qwen2", lambda: by_pattern(cuts.ONE_DIGIT)),
    "llama 2": ("default", lambda: sentencepiece(prefixed(), None)),
    "gemma": ("default", lambda: sentencepiece(spaces(), pre_tokenizers.Split(" ", "merged_with_previous"))),
    "phi-3": ("default", phi3),
    "without a prefix": ("default", lambda: sentencepiece(None, metaspace("never"))),
}


def metaspace(scheme: str) -> Any:
    return pre_tokenizers.Metaspace(cuts.SPACE, scheme, False)


def saved(tokenizer: Tokenizer, folder: Path, single: str = "<s> $A") -> Path:
    special = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


def told(folder: Path) -> dict[str, Any]:
    rows = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    return {entry.key.removeprefix("tokenizer.ggml."): entry.value for entry in vocabulary.entries(folder, rows)}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("single", ["<s> $A", "$A </s>"])
def test_llama_cpp_cuts_as_the_model_does(name: str, single: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="runs the pinned build of llama.cpp; pip install 'bitfleet[llamacpp]'")
    cut, make = TOKENIZERS[name]
    tokenizer = make()
    saved(tokenizer, tmp_path, single)
    found = vocabulary.entries(tmp_path, tokenizer.get_vocab_size())
    assert told(tmp_path)["pre"] == cut
    named = Entry("general.name", STRING, vocabulary.called("a model like Phi-3", tmp_path))
    (tmp_path / WEIGHTS).write_bytes(head([Entry("general.architecture", STRING, "llama"), named, *found], []))
    Serving(64, 1, ()).save(tmp_path)
    ids, _, _ = fresh.spoken_by_others(tmp_path, texts := [t for t in (*PROBES, *AROUND) if "\0" not in t], [])
    ours = Tokenization(tmp_path)
    differs = {text: (found, ours.encode(text)) for text, found in zip(texts, ids, strict=True)
               if found != ours.encode(text)}  # fmt: skip
    assert differs.keys() <= (
        {"<0x41>"} if cut == "default" else set()
    )  # a text that names a byte is one to tokenizers


def test_rows_without_a_token_and_special_tokens_are_told(tmp_path: Path) -> None:
    folder = saved(byte_level(digits()), tmp_path)
    rows = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    entries = {entry.key: entry.value for entry in vocabulary.entries(folder, rows + 2)}
    tokens, kinds = entries["tokenizer.ggml.tokens"], entries["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list) and isinstance(kinds, list) and len(tokens) == len(kinds) == rows + 2
    assert tokens[:4] == SPECIAL and kinds[:5] == [3, 3, 3, 3, 1] and kinds[-2:] == [5, 5]
    assert tokens[-1] == f"[PAD{rows + 1}]"
    with pytest.raises(InputError, match=f"has a token {rows - 1}, the embedding has {rows - 1} rows"):
        vocabulary.entries(folder, rows - 1)


@pytest.mark.parametrize(
    ("single", "begins", "ends"), [("$A", False, False), ("<s> $A", True, False), ("<s> $A </s>", True, True)]
)
def test_what_stands_around_a_text_is_told(single: str, begins: bool, ends: bool, tmp_path: Path) -> None:
    found = told(saved(byte_level(digits()), tmp_path, single))
    assert (found["add_bos_token"], found["add_eos_token"]) == (begins, ends)
    assert (found["bos_token_id"], found["eos_token_id"]) == (0, 1)


REFUSED: dict[str, tuple[Callable[[], Tokenizer], str]] = {
    "a prefix space": (lambda: byte_level(ByteLevel(add_prefix_space=True)), "prefix space"),
    "another pattern": (lambda: by_pattern(r"\w+|\W"), "no name|has a name"),
    "whole words": (lambda: by_pattern(cuts.ONE_DIGIT, ignore_merges=True), "has a name"),
    "a space that is not doubled": (lambda: sentencepiece(None, metaspace("first")), "treat spaces otherwise"),
    "words": (lambda: Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a")), "must be BPE"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_would_cut_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        told(saved(make(), tmp_path))


def test_a_normalizer_is_refused_but_for_composition_in_qwen(tmp_path: Path) -> None:
    tokenizer = by_pattern(cuts.ONE_DIGIT)
    tokenizer.normalizer = normalizers.NFC()
    assert told(saved(tokenizer, tmp_path))["pre"] == "qwen2"
    tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match="normalizer is"):
        told(saved(tokenizer, tmp_path))


def test_merges_that_tokens_do_not_imply_are_refused(tmp_path: Path) -> None:
    folder = saved(sentencepiece(spaces(), None), tmp_path)
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text())
    del described["model"]["merges"][3]
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match="SentencePiece would"):
        told(folder)


def test_the_name_says_whether_special_tokens_take_spaces(tmp_path: Path) -> None:
    taking, plain = saved(phi3(), tmp_path / "phi"), saved(sentencepiece(prefixed(), None), tmp_path / "llama")
    assert [vocabulary.called(name, taking) for name in ("Phi-3-mini", "mine")] == ["Phi-3-mini", "phi-3 mine"]
    assert [vocabulary.called(name, plain) for name in ("Phi3-like", "mine")] == ["phi 3-like", "mine"]


def test_a_token_that_takes_spaces_is_refused(tmp_path: Path) -> None:
    folder = saved(byte_level(digits()), tmp_path)
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text())
    described["added_tokens"][2]["rstrip"] = True
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match="im_start"):
        told(folder)


def test_a_model_without_a_tokenizer_has_no_file(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="tokenizer"):
        vocabulary.entries(tmp_path, 10)
