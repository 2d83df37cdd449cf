"""Text to token ids and back as the model's own tokenizer does it, from tokenizer.json alone.

The library `tokenizers` is what transformers itself encodes with, so neither transformers nor torch is needed. Probes
are texts of many kinds; a package keeps what transformers makes of them (`planner.probes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from records.errors import InputError
from records.reading import read_foreign

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

PROBES = (
    "", " ", "  two  spaces ", "\n", "a\nb\n\nc\r\nd", "\ttabs\tand\t\ttabs", "the quick brown fox",
    "The Quick BROWN fox", "don't, won't; it's (fine) - isn't it?", "hello", " hello", "hello ", "Hello, world!",
    "a" * 300, "word " * 500, "0", "7", "42", "1234567890", "3.14159", "1,000,000", "2026-11-28 12:30", "x=1;y+=2",
    "def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) { a[i] <<= 1; }",
    "{\"key\": [1, 2.5, null, true], \"text\": \"a\\\"b\"}", "<div class='x'>&amp;</div>",
    "https://example.org/a?b=c&d=%20#e", "SELECT * FROM t WHERE a <> 'b';", "naïve café façade",
    "n\u0303 e\u0301 combining", "ﬁ ﬂ ™ ½ ² Å", "Straße, ÄÖÜ", "Привет, мир!", "Γειά σου Κόσμε", "שלום עולם",
    "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "你好，世界！", "こんにちは世界", "안녕하세요 세계",
    "😀 🎉 👩\u200d👩\u200d👧\u200d👦 🇩🇪", "\u200b\u00a0\u2028\ufeff", "a\u0000b", "<s>", "</s>",
    "text <s> inside </s> text", "<|endoftext|>", "<|im_start|>user\nhi<|im_end|>", "[INST] hi [/INST]",
    "<unk> <pad> <mask>", "<0x41>", "▁under▁bar", "##piece", "ﷺ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
)  # fmt: skip


def model_tokenizer(folder: Path, trusted: bool) -> Any:
    """The tokenizer in `folder` as transformers loads it, which is imported here."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)


class Tokenization:
    """The tokenizer in `folder`. InputError where tokenizer.json is missing or cannot be read."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / TOKENIZER
        try:
            self._tokenizer: Any = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain exceptions for whatever it cannot read
            raise InputError(f"{path} must be a tokenizer that the library tokenizers reads: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids; `special` puts what the tokenizer puts around a text. A rendered chat has that in it already.

        InputError for what is no text: halves of surrogate pairs, which stand for bytes that are no UTF-8 as well.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"a text must be Unicode, at character {error.start} this one is not") from None
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def stream(self, ids: Iterator[int]) -> Iterator[str]:
        """The text of tokens as they come: whole characters, and at the end whatever is left of one."""
        from tokenizers.decoders import DecodeStream

        decoder, seen, given = DecodeStream(skip_special_tokens=True), [], ""
        for token in ids:
            seen.append(token)
            piece = decoder.step(self._tokenizer, token)
            if piece:
                given += piece
                yield piece
        whole = self.decode(seen)
        if whole.startswith(given) and whole != given:
            yield whole[len(given) :]


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that a chat template may name, as transformers hands them to it."""
    settings = read_foreign(folder / SETTINGS)
    named = {name: settings.get(name) for name in SPECIAL}
    extra = settings.get("extra_special_tokens")
    named |= extra if isinstance(extra, dict) else {}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def chat_template(folder: Path) -> str | None:
    """The template's source, from its own file or, as older tokenizers have it, from the settings."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} must be UTF-8, it is not ({error.reason}); copy it again") from None
    found = read_foreign(folder / SETTINGS).get("chat_template")
    if isinstance(found, list):
        found = next((t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def stop_ids(model_dir: Path, tokenizer_dir: Path, vocab_size: int) -> list[int]:
    """Every token that ends a text: generation_config's, as `generate` in transformers has it, or else the config's;
    and the tokenizer's end of text. A model that names none gets its last token."""
    generation, config = (read_foreign(model_dir / name) for name in ("generation_config.json", "config.json"))
    named = generation.get("eos_token_id")
    found = token_ids(config.get("eos_token_id") if named is None else named)
    end = tokenizer_stop(tokenizer_dir)
    found += [end] if end is not None and end not in found else []
    return [token for token in found if 0 <= token < vocab_size] or [vocab_size - 1]


def tokenizer_stop(folder: Path) -> int | None:
    """The id of the tokenizer's `eos_token`."""
    token = read_foreign(folder / SETTINGS).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    added = read_foreign(folder / TOKENIZER).get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(entry, dict) for entry in added):
        raise InputError(f"{folder / TOKENIZER} must list its added_tokens as objects; copy it again")
    for entry in added:
        if token is not None and entry.get("content") == token:
            if not token_ids(entry.get("id")):
                raise InputError(f"{folder / TOKENIZER} must give {token!r:.40} an id, it does not; copy it again")
            return token_ids(entry["id"])[0]
    return None


def token_ids(value: Any) -> list[int]:
    """A token id or a list of them, as configs have it."""
    values = value if isinstance(value, list) else [value]
    return [int(token) for token in values if isinstance(token, int) and not isinstance(token, bool)]
