"""The account of a load: what became of every tensor and every file of a model's source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from records.errors import InputError

READ, TIED, LEFT = "read", "tied to the embedding", "left aside: "
NAMED = 3  # names in a message


@dataclass(frozen=True)
class Account:
    """`tensors` and `files`: name -> what became of it: `read`, `read into NAME`, `tied to the embedding`, or
    `left aside: WHY`."""

    tensors: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """All of it in one line: `read 272 tensors of 1 file; 30 left aside: rotary_emb.inv_freq`."""
        used = sum(not became.startswith(LEFT) for became in self.tensors.values())
        read = sum(became.startswith(READ) for became in self.files.values())
        parts = [f"read {used} tensors of {read} file{'s' if read != 1 else ''}"]
        kinds = Counter(_kind(name) for name, became in self.tensors.items() if became.startswith(LEFT))
        parts += [f"{count} left aside: {kind}" for kind, count in kinds.items()]
        parts += [f"{name} {became}" for name, became in self.files.items() if became.startswith(LEFT)]
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {"line": self.line, "files": dict(self.files), "tensors": dict(self.tensors)}


def _kind(name: str) -> str:
    """The last two parts of a tensor's name."""
    return ".".join(name.split(".")[-2:])


def names(found: Iterable[str]) -> str:
    """The first few names, and how many there are."""
    ordered = sorted(found)
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return ", ".join(ordered[:NAMED]) + more


def refuse_missing(source: Any, missing: Iterable[str], expected: int) -> None:
    """InputError with the first tensors that the model needs and its files lack, and how many."""
    lacking = sorted(missing)
    if lacking:
        raise InputError(
            f"{source} lacks {len(lacking)} of the model's {expected} tensors: {names(lacking)}; "
            "give a complete causal language model whose config.json fits its files"
        )


def refuse_unexpected(source: Any, unexpected: Iterable[str]) -> None:
    """InputError with the tensors that the model has no place for: without them it would be another model."""
    left = sorted(unexpected)
    if left:
        raise InputError(
            f"{source} has {len(left)} unexpected tensor{'s' if len(left) > 1 else ''} that its config has no place "
            f"for and nothing would read: {names(left)}; mend config.json, or merge or remove them"
        )


def refuse_not_finite(source: Any, model: Any) -> None:
    """InputError naming the first weight that holds a NaN or an infinity."""
    for name, parameter in model.named_parameters():
        low, high = parameter.aminmax()  # a NaN anywhere is in both
        if not (low.isfinite() and high.isfinite()):
            raise InputError(f"{source}: the weight {name} has values that are NaN or infinite; get a sound copy")
