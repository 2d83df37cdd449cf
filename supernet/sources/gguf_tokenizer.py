"""The tokenizer of a GGUF file, where what transformers makes of it is known to cut text as the model does."""

from __future__ import annotations

from typing import Any

from records.errors import InputError
from supernet.sources.gguf_file import GGUF

# How llama.cpp cuts text before merging, by `tokenizer.ggml.pre` (llama-vocab.cpp): as GPT-2; as GPT-2 with every digit
# by itself; or by a pattern that transformers knows.
AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "a.x-4.0", "mellum")
DIGITS_ALONE = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")  # a word that is a token stays whole
BY_PATTERN = (*WHOLE_WORDS, "qwen2", "deepseek-r1-qwen", "megrez", "gpt-4o", "llama4", "dbrx", "smaug-bpe")
BPE, SENTENCEPIECE = "gpt2", "llama"  # the kinds that are read, as `tokenizer.ggml.model` calls them
CONTROL, USER_DEFINED = 3, 4  # types of tokens that are matched whole in a text


def tokenizer_of(gguf: GGUF) -> Any:
    """InputError where the file has no tokenizer, or one that is not known to be read exactly."""
    from transformers import PreTrainedTokenizerFast

    path = gguf.files[0]
    described, settings = _grouped(gguf)
    tokens, kind = described.get("tokens"), described.get("tokenizer_type")
    if not isinstance(tokens, list) or kind not in (BPE, SENTENCEPIECE):
        raise InputError(
            f"{path} has a tokenizer of the kind {kind}, read are {BPE} and {SENTENCEPIECE}; "
            "give the model's Hugging Face folder"
        )
    if kind == BPE:
        _refuse_unknown_cut(path, described.get("pre_tokenizer_type"))
    try:
        backend = _byte_level(described) if kind == BPE else _sentencepiece(gguf, described)
    except Exception as error:
        raise InputError(f"the tokenizer in {path} cannot be read ({str(error)[:120]}); get a sound copy") from error
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
    if len(tokenizer) != len(tokens):
        raise InputError(f"{path}: its {len(tokens)} tokens are read as {len(tokenizer)}; give the Hugging Face folder")
    if kind == SENTENCEPIECE:
        _refuse_other_spaces(path, tokenizer, gguf.metadata)
    return tokenizer


def _byte_level(described: dict[str, Any]) -> Any:
    """Byte-level BPE. Not by transformers' GPT2Tokenizer: that adds <|endoftext|> to vocabularies without it, and keeps
    no word whole."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    tokens, cut = described["tokens"], described["pre_tokenizer_type"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in described["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut in WHOLE_WORDS))
    tokenizer.pre_tokenizer = _pre_tokenizer(cut)
    tokenizer.decoder = decoders.ByteLevel()
    types = described.get("token_type") or []
    whole = [(token, kind) for token, kind in zip(tokens, types, strict=False) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL) for token, kind in whole])
    return tokenizer


def _pre_tokenizer(cut: str) -> Any:
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if cut in AS_GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if cut in DIGITS_ALONE:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    pattern = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[cut]), behavior="isolated")
    return pre_tokenizers.Sequence([pattern, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _sentencepiece(gguf: GGUF, described: dict[str, Any]) -> Any:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

    return convert_gguf_tokenizer(str(gguf.metadata["general.architecture"]), described)[0]


def _grouped(gguf: GGUF) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tokenizer's metadata by the names of transformers, and the settings of its class."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING

    described, settings = (
        {
            name: gguf.metadata[f"tokenizer.{key}"]
            for key, name in GGUF_TOKENIZER_MAPPING[group].items()
            if f"tokenizer.{key}" in gguf.metadata
        }
        for group in ("tokenizer", "tokenizer_config")
    )
    # llama.cpp adds it to these unless the file says otherwise
    if described.get("tokenizer_type") == SENTENCEPIECE or described.get("pre_tokenizer_type") in WHOLE_WORDS:
        settings.setdefault("add_bos_token", True)
    for name in ("bos", "eos", "unk", "pad"):
        number = described.get(f"{name}_token_id")
        tokens = described.get("tokens") or []
        if number is not None and not 0 <= number < len(tokens):
            raise InputError(f"{gguf.files[0]}: {name}_token_id is {number}, of {len(tokens)} tokens; get a sound copy")
        settings[f"{name}_token"] = None if number is None else tokens[number]
    return described, settings


def _refuse_unknown_cut(path: Any, name: Any) -> None:
    if name not in (*AS_GPT2, *DIGITS_ALONE, *BY_PATTERN):
        said = f"names the pretokenizer {name}, which is not known" if name else "names no pretokenizer"
        raise InputError(
            f"{path} {said} (tokenizer.ggml.pre), so its text could be cut otherwise than the model's; "
            "give the model's Hugging Face folder, or a file of a newer converter"
        )


def _refuse_other_spaces(path: Any, tokenizer: Any, metadata: Any) -> None:
    """SentencePiece puts a space before a text unless the file says otherwise."""
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    begins = bool(ids) and tokenizer.convert_ids_to_tokens(ids)[0].startswith("\u2581")
    if begins != metadata.get("tokenizer.ggml.add_space_prefix", True) or metadata.get(
        "tokenizer.ggml.remove_extra_whitespaces", False
    ):
        raise InputError(f"{path} treats spaces otherwise than its tokenizer here would; give the Hugging Face folder")
