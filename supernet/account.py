"""The account of a load: what became of every tensor and every file of a model's source."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from records.errors import InputError
from supernet.absent import present

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


def refuse_other_tensors(source: Any, missing: Iterable[str], unexpected: Iterable[str], expected: int) -> None:
    """InputError with the first tensors, and how many, that the model needs and its files lack, or that they have and
    the model has no place for: with the one filled up at random, or the other left out, it would be another model."""
    lacking, left = sorted(missing), sorted(unexpected)
    over = f"{len(left)} unexpected, which nothing would read: {names(left)}" if left else ""
    if lacking:
        raise InputError(
            f"{source}: of the model's {expected} tensors {len(lacking)} are missing: {names(lacking)}"
            f"{f' ({over})' if left else ''}; give a complete language model whose config.json fits its files"
        )
    if left:
        raise InputError(f"{source}: of its tensors {over}; mend config.json, or merge or remove them")


def mark_of(source: Any, model: Any) -> str:
    """What tells other weights from these, and weights of the same shapes from each other: a SHA-256 of the least and
    the largest value of each. InputError naming the first weight that holds a NaN or an infinity."""
    mark = hashlib.sha256()
    for name, parameter in model.named_parameters():
        with present(parameter):
            low, high = parameter.aminmax()  # a NaN anywhere is in both
        if not (low.isfinite() and high.isfinite()):
            raise InputError(f"{source}: the weight {name} has values that are NaN or infinite; get a sound copy")
        mark.update(f"{name} {low.item()!r} {high.item()!r}\n".encode())
    return mark.hexdigest()
