"""What a model's tokenizer puts before a text."""

from __future__ import annotations

from typing import Any

PROBES = ("Hello, world", "a 1")


def beginning(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that every text begins with for this tokenizer, () for none.

    A model that was trained behind them is another model without them. The tokenizer is asked, no list of models: what
    stands before a text's own tokens in its encoding. What it puts behind a text is not used.
    """
    found = {_before(tokenizer, probe) for probe in PROBES}
    return found.pop() if len(found) == 1 else ()


def _before(tokenizer: Any, text: str) -> tuple[int, ...]:
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text, add_special_tokens=True)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    # Where the text itself is encoded otherwise behind them: the special tokens at the front.
    special = set(tokenizer.all_special_ids)
    length = next((number for number, token in enumerate(whole) if token not in special), 0)
    return tuple(whole[:length])
