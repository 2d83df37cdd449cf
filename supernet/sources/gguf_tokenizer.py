"""The tokenizer of a GGUF file, where what transformers makes of it is known to cut text as the model does."""

from __future__ import annotations

from typing import Any

from records.errors import InputError
from supernet.sources.gguf_file import GGUF

# How llama.cpp cuts text before merging (llama-vocab.cpp), by `tokenizer.ggml.pre`: as GPT-2, which is what
# transformers makes of a name that it does not know; and as GPT-2 with every digit by itself.
AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "a.x-4.0", "mellum")
DIGITS_ALONE = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
KINDS = ("gpt2", "llama")  # byte-level BPE, SentencePiece


def tokenizer_of(gguf: GGUF) -> Any:
    """InputError where the file has no tokenizer, or one that is not known to be read exactly."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

    path, metadata = gguf.files[0], gguf.metadata
    described, settings = _grouped(gguf)
    tokens = described.get("tokens")
    if not isinstance(tokens, list) or described.get("tokenizer_type") not in KINDS:
        raise InputError(
            f"{path} has a tokenizer of the kind {described.get('tokenizer_type')}, read are {', '.join(KINDS)}; "
            "give the model's Hugging Face folder"
        )
    if described["tokenizer_type"] == "gpt2":
        _refuse_unknown_cut(path, described.get("pre_tokenizer_type"))
    try:
        backend, _ = convert_gguf_tokenizer(str(metadata["general.architecture"]), described)
    except Exception as error:
        raise InputError(f"the tokenizer in {path} cannot be read ({str(error)[:120]}); get a sound copy") from error
    if described.get("pre_tokenizer_type") in DIGITS_ALONE:
        _cut_digits(backend)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
    _refuse_other_ids(path, tokenizer, tokens)
    _refuse_other_spaces(path, tokenizer, metadata)
    return tokenizer


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
    if described.get("tokenizer_type") == "llama":  # llama.cpp adds it unless the file says otherwise
        settings.setdefault("add_bos_token", True)
    for name in ("bos", "eos", "unk", "pad"):
        number = described.get(f"{name}_token_id")
        tokens = described.get("tokens") or []
        if number is not None and not 0 <= number < len(tokens):
            raise InputError(f"{gguf.files[0]}: {name}_token_id is {number}, of {len(tokens)} tokens; get a sound copy")
        settings[f"{name}_token"] = None if number is None else tokens[number]
    return described, settings


def _refuse_unknown_cut(path: Any, name: Any) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if name not in (*AS_GPT2, *DIGITS_ALONE, *GGUF_PRE_TOKENIZER_SPLITS):
        said = f"names the pretokenizer {name}, which is not known" if name else "names no pretokenizer"
        raise InputError(
            f"{path} {said} (tokenizer.ggml.pre), so its text could be cut otherwise than the model's; "
            "give the model's Hugging Face folder, or a file of a newer converter"
        )


def _cut_digits(backend: Any) -> None:
    from tokenizers import pre_tokenizers

    digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, level])


def _refuse_other_ids(path: Any, tokenizer: Any, tokens: list[str]) -> None:
    if len(tokenizer) != len(tokens):
        raise InputError(f"{path}: its {len(tokens)} tokens are read as {len(tokenizer)}; give the Hugging Face folder")


def _refuse_other_spaces(path: Any, tokenizer: Any, metadata: Any) -> None:
    """SentencePiece puts a space before a text unless the file says otherwise."""
    if metadata["tokenizer.ggml.model"] != "llama":
        return
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    begins = bool(ids) and tokenizer.convert_ids_to_tokens(ids)[0].startswith("\u2581")
    if begins != metadata.get("tokenizer.ggml.add_space_prefix", True) or metadata.get(
        "tokenizer.ggml.remove_extra_whitespaces", False
    ):
        raise InputError(f"{path} treats spaces otherwise than its tokenizer here would; give the Hugging Face folder")
