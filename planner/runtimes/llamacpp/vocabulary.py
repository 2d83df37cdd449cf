"""A model's tokenizer as the metadata of a GGUF file, where llama.cpp's own code is known to cut text alike.

A file names one of the ways to cut that llama.cpp has; it cannot describe another. So tokenizer.json is compared with
those, part by part, and what has no name there is refused: a text that is cut otherwise is another question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.runtimes.llamacpp import cuts
from planner.runtimes.llamacpp.header import BOOL, FLOAT32, INT32, STRING, UINT32, Entry
from planner.tokens import SETTINGS, TOKENIZER, Tokenization, chat_template, stop_ids
from records.errors import InputError, MissingError
from records.reading import read_foreign

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # what llama.cpp takes a token for
_ENDS = ("eos", "eot", "eom")  # keys of tokens at which llama.cpp ends a text
# llama.cpp lets special tokens take the spaces after them in models by the name of Phi-3, and there all but these.
_PHI3 = re.compile("phi-?3", re.IGNORECASE)
_KEEP_SPACES = {"<unk>", "<s>", "<|endoftext|>"}
_BYTES = {f"<0x{value:02X}>" for value in range(256)}


def entries(model_dir: Path, vocab_size: int) -> list[Entry]:
    """The tokenizer in `model_dir`, with a token for each of the `vocab_size` rows of the embedding.

    InputError where llama.cpp has no such tokenizer; MissingError where there is none.
    """
    if not (model_dir / TOKENIZER).is_file():
        raise MissingError(f"a GGUF file holds the model's tokenizer, {model_dir} has no {TOKENIZER}; save it there")
    described = read_foreign(model_dir / TOKENIZER)
    try:
        kind = cuts.kind_of(described)
        tokens, types = _tokens(described, vocab_size)
        found = [
            Entry("tokenizer.ggml.model", STRING, kind.model),
            Entry("tokenizer.ggml.pre", STRING, kind.cut),
            Entry("tokenizer.ggml.tokens", STRING, tokens),
            Entry("tokenizer.ggml.token_type", INT32, types),
        ]
        merges = cuts.merges_of(described)
        if kind.model == cuts.SENTENCEPIECE:
            found.append(Entry("tokenizer.ggml.scores", FLOAT32, cuts.scores(tokens, types, merges)))
            found.append(Entry("tokenizer.ggml.add_space_prefix", BOOL, kind.space_prefix))
            found.append(Entry("tokenizer.ggml.remove_extra_whitespaces", BOOL, False))
        else:
            found.append(Entry("tokenizer.ggml.merges", STRING, [" ".join(pair) for pair in merges]))
        found += _special(model_dir, tokens, vocab_size)
    except InputError as error:
        raise InputError(f"the tokenizer of {model_dir} has no counterpart in llama.cpp: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{model_dir / TOKENIZER} is damaged ({error!r:.80}); copy it again") from None
    template = chat_template(model_dir)
    return found + ([] if template is None else [Entry("tokenizer.chat_template", STRING, template)])


def called(name: str, model_dir: Path) -> str:
    """The name that a file gives its model: llama.cpp reads there whether special tokens take the spaces after them,
    and does not load a file by the name of Phi-3 without its tokens. For a model that `entries` takes."""
    looks = _PHI3.search(name) is not None
    if _takes_spaces(read_foreign(model_dir / TOKENIZER)):
        return name if looks else f"phi-3 {name}"
    return _PHI3.sub("phi 3", name) if looks else name


def _takes_spaces(described: Mapping[str, Any]) -> bool:
    """Whether special tokens take the spaces after them, as Phi-3's do. InputError where others do, or otherwise."""
    added = described["added_tokens"]
    names = {token["content"] for token in added}
    taking = {token["content"] for token in added if token.get("rstrip")}
    phi3 = bool(taking) and taking == names - _KEEP_SPACES and _KEEP_SPACES | {"</s>"} <= names
    for token in added:
        if any(token.get(flag) for flag in ("single_word", "lstrip")) or (token.get("rstrip") and not phi3):
            raise InputError(f"{token['content']!r:.40} takes the spaces beside it or stands by itself alone")
    return phi3


def _tokens(described: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Every row's token and what it is; rows that the tokenizer does not use get names that no text has."""
    model = described["model"]
    by_id = {number: token for token, number in model["vocab"].items()}
    types = {number: BYTE if model.get("byte_fallback") and t in _BYTES else NORMAL for number, t in by_id.items()}
    _takes_spaces(described)
    for token in described["added_tokens"]:
        by_id[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    unknown = next((number for number, token in by_id.items() if token == model.get("unk_token")), None)
    if unknown is not None:
        types[unknown] = UNKNOWN
    if max(by_id) >= vocab_size:
        raise InputError(f"it has a token {max(by_id)}, the embedding has {vocab_size} rows")
    rows = range(vocab_size)
    return [by_id.get(row, f"[PAD{row}]") for row in rows], [types.get(row, UNUSED) for row in rows]


def _special(model_dir: Path, tokens: list[str], vocab_size: int) -> list[Entry]:
    """Tokens of a meaning of their own, and which of them stand around every text."""
    begin, end = around(Tokenization(model_dir))
    settings = read_foreign(model_dir / SETTINGS)
    numbers = {token: number for number, token in enumerate(tokens)}
    named = {}
    for name in ("bos", "unk", "pad"):
        token = settings.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in numbers:
            named[name] = numbers[token]
    stops = stop_ids(model_dir, model_dir, vocab_size)
    if end:
        stops = [end[0], *(token for token in stops if token != end[0])]
    if begin:
        named["bos"] = begin[0]
    keys = {"bos": "bos", "unk": "unknown", "pad": "padding"}
    found = [Entry(f"tokenizer.ggml.{keys[name]}_token_id", UINT32, number) for name, number in named.items()]
    found += [Entry(f"tokenizer.ggml.{key}_token_id", UINT32, s) for key, s in zip(_ENDS, stops, strict=False)]
    found.append(Entry("tokenizer.ggml.add_bos_token", BOOL, bool(begin)))
    found.append(Entry("tokenizer.ggml.add_eos_token", BOOL, bool(end)))
    return found


def around(tokenization: Tokenization) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text: one token at most each."""
    plain, whole = tokenization.encode("a", special=False), tokenization.encode("a")
    more = len(whole) - len(plain)
    starts = [at for at in range(more + 1) if whole[at : at + len(plain)] == plain]
    if not starts or starts[0] > 1 or more - starts[0] > 1:
        raise InputError(f"it puts more around a text than one token before and one after, {whole!r:.60} for 'a'")
    return whole[: starts[0]], whole[starts[0] + len(plain) :]
