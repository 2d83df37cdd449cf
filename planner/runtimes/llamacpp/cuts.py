"""How tokenizers cut text: as tokenizer.json describes it, and by llama.cpp's names for it (llama-vocab.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from records.errors import InputError

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # the kinds that are written, as `tokenizer.ggml.model` calls them
SPACE = "\u2581"  # what SentencePiece writes for a space

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
THREE_DIGITS = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
ONE_DIGIT = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
# The pattern of the splitter, whether a word that is a token stays whole, and llama.cpp's name.
_PATTERNS = {
    (THREE_DIGITS, True): "llama-bpe",
    (THREE_DIGITS, False): "dbrx",
    (ONE_DIGIT, False): "qwen2",
}
_COMPOSED = "qwen2"  # the name whose models write NFC as their normalizer: llama.cpp takes a text as it comes


@dataclass(frozen=True)
class Kind:
    """What llama.cpp calls a tokenizer. `space_prefix`: a text is read as if a space stood before it."""

    model: str
    cut: str
    space_prefix: bool = False


def kind_of(described: Mapping[str, Any]) -> Kind:
    """The kind of a tokenizer.json. InputError names the part that llama.cpp does not have."""
    model = described["model"]
    if model["type"] != "BPE":
        raise InputError(f"its model must be BPE, it is {model['type']}")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise InputError(f"its model sets {option}")
    if model.get("byte_fallback"):
        return Kind(SENTENCEPIECE, "default", _space_prefix(described))
    cut = _cut(described.get("pre_tokenizer"), bool(model.get("ignore_merges")))
    normalizer = described.get("normalizer")
    if normalizer is not None and not (cut == _COMPOSED and normalizer.get("type") == "NFC"):
        raise InputError(f"its normalizer is {_said(normalizer)}, there must be none")
    return Kind(BYTE_LEVEL, cut)


def _cut(cutter: Any, whole_words: bool) -> str:
    """The name of a byte-level tokenizer's way to cut."""
    steps = cutter["pretokenizers"] if cutter and cutter["type"] == "Sequence" else [cutter]
    *before, last = steps
    if not last or last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        raise InputError(f"its pre_tokenizer must end in ByteLevel without a prefix space, it is {_said(cutter)}")
    if last.get("use_regex", True):
        if not before and not whole_words:
            return "gpt-2"
        if [_plain(step) for step in before] == [("Digits", True)] and not whole_words:
            return "smollm"
    elif len(before) == 1 and before[0]["type"] == "Split":
        step = before[0]
        pattern = step["pattern"].get("Regex")
        if step["behavior"] == "Isolated" and not step.get("invert") and (pattern, whole_words) in _PATTERNS:
            return _PATTERNS[pattern, whole_words]
    raise InputError(f"its pre_tokenizer is none that llama.cpp has a name for here: {_said(cutter)}")


def _plain(step: Any) -> tuple[str, bool]:
    return step["type"], bool(step.get("individual_digits"))


def _space_prefix(described: Mapping[str, Any]) -> bool:
    """Whether a tokenizer with SentencePiece's pieces reads a space before a text. InputError where it treats spaces in
    a way that llama.cpp does not."""
    normalizer, cutter = described.get("normalizer"), described.get("pre_tokenizer")
    listed: list[Any] = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    steps = [step for step in listed if step]
    prepends = [step for step in steps if step["type"] == "Prepend" and step["prepend"] == SPACE]
    replaces = [
        s for s in steps if s["type"] == "Replace" and s["pattern"] == {"String": " "} and s["content"] == SPACE
    ]
    if replaces and len(prepends) + len(replaces) == len(steps) and _cuts_nothing(cutter):
        return bool(prepends)
    # With another scheme a text that begins with a space gets no second one; llama.cpp puts it before every text.
    never = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}
    if not steps and cutter == never:
        return False
    raise InputError(f"its normalizer and pre_tokenizer treat spaces otherwise: {_said(normalizer)}, {_said(cutter)}")


def _cuts_nothing(cutter: Any) -> bool:
    """Gemma's cuts at spaces, of which the normalizer has left none."""
    return cutter is None or (cutter["type"] == "Split" and cutter["pattern"] == {"String": " "})


def merges_of(described: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs that are merged, first first; older files write a pair as one text."""
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in described["model"]["merges"]]
    return [(left, right) for left, right in pairs]


def scores(tokens: list[str], types: list[int], merges: list[tuple[str, str]]) -> list[float]:
    """What SentencePiece merges by: of all neighbours that make a token, those whose token scores highest.

    InputError where the merges are not those that the tokens alone imply.
    """
    ranks: dict[str, int] = {}
    last = ""
    for left, right in merges:
        made = left + right
        if made != last and made in ranks:
            raise InputError(f"its merges of {made!r:.40} are not one after another, as SentencePiece's are")
        ranks.setdefault(made, len(ranks))
        last = made
    known, pairs = set(tokens), set(merges)
    for token, kind in zip(tokens, types, strict=True):
        if kind != 1:
            continue
        for cut in range(1, len(token)):
            if token[:cut] in known and token[cut:] in known and (token[:cut], token[cut:]) not in pairs:
                raise InputError(f"it does not merge {token[:cut]!r:.40} and {token[cut:]!r:.40}, SentencePiece would")
    return [-float(ranks[token]) if token in ranks else -float(len(ranks)) for token in tokens]


def _said(part: Any) -> str:
    return "none" if part is None else f"{part!r:.160}"
