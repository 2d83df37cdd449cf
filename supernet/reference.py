"""What the full model says of the texts that subnets are measured on, kept small and in one file with one head."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from records.errors import InputError
from supernet.absent import present
from supernet.blocks import last_states
from supernet.exact import in_float32
from supernet.files import read_tensors, write_tensors
from supernet.progress import Progress, silent

EXACT = (torch.bfloat16, torch.float16)  # what a head may be kept in where that is the same numbers
HEAD_ROWS = 2**14  # of the head become float32 at a time
HELD_OUT, MANUAL = "held-out", "Python manual"


@dataclass(frozen=True)
class Reference:
    """What the full model says of windows of one text: its last hidden states and its head.

    windows: int64 `(n, tokens)`; hidden: float32 `(n, tokens, hidden_size)`; head: `(vocab_size, hidden_size)`;
    bias: `(vocab_size,)` or None; softcap: the cap on the logits of the models that have one; first: how many tokens of
    each window are the tokenizer's beginning, where nothing is measured; text: what text it is, in words.
    """

    windows: Tensor
    hidden: Tensor
    head: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    first: int = 0
    text: str = ""

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, windows: Tensor, progress: Progress = silent, first: int = 0, text: str = "") -> Reference:
        with in_float32(model):
            hidden = last_states(model, windows, partial(progress, "full model"))
        head = model.get_output_embeddings()
        with present(head):
            weight = head.weight.detach()
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return cls(windows, torch.cat(hidden), weight, getattr(head, "bias", None), cap, first, text)

    def to(self, device: torch.device) -> Reference:
        """The same on `device`; nothing is copied where it is there already."""
        bias = None if self.bias is None else self.bias.to(device)
        windows, hidden, head = self.windows.to(device), self.hidden.to(device), self.head.to(device)
        return replace(self, windows=windows, hidden=hidden, head=head, bias=bias)

    def part(self, windows: slice) -> Reference:
        """The same of some windows alone."""
        return replace(self, windows=self.windows[windows], hidden=self.hidden[windows])

    def logits(self, hidden: Tensor, ids: slice) -> Tensor:
        """The full model's logits of some `ids` from `hidden` `(tokens, hidden_size)`, float32 `(tokens, ids)`."""
        logits = hidden @ self.head[ids].float().T
        if self.bias is not None:
            logits += self.bias[ids].float()
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def log_probs(self, number: int, tokens: slice) -> Tensor:
        """The full model's log probabilities at some of a window's `tokens`, float32 `(tokens, vocab_size)`."""
        hidden, rows = self.hidden[number, tokens], range(0, len(self.head), HEAD_ROWS)
        return torch.cat([self.logits(hidden, slice(at, at + HEAD_ROWS)) for at in rows], -1).log_softmax(-1)

    def to_json(self) -> dict[str, Any]:
        """What an index says of it: enough to know without reading a tensor what was measured on it."""
        return {
            "text": self.text, "windows": len(self.windows), "tokens": self.windows.numel(), "first": self.first,
            "digest": digest(self.windows, self.first),
        }  # fmt: skip


def digest(windows: Tensor, first: int) -> str:
    """Names windows and what is measured of them: what was measured on the same digest need not be again."""
    seen = hashlib.sha256(f"{tuple(windows.shape)} {first}".encode())
    seen.update(windows.cpu().contiguous().numpy().tobytes())
    return seen.hexdigest()[:16]


def text_name(source: str, taken: Collection[str]) -> str:
    """What a text of one's own is called beside those that are there."""
    name = Path(source).name or source
    return name if name not in taken else f"{name} (yours)"


def joined(references: Mapping[str, Reference]) -> Reference:
    """All windows as those of one text; they are of one model and equally long."""
    one = next(iter(references.values()))
    windows = torch.cat([reference.windows for reference in references.values()])
    return replace(one, windows=windows, hidden=torch.cat([reference.hidden for reference in references.values()]))


def write_references(path: Path, references: Mapping[str, Reference]) -> None:
    """Texts of one model in one file. The head is in it once, in the narrowest type that holds it exactly."""
    one = next(iter(references.values()))
    tensors = {"head": narrowest(one.head)} | ({} if one.bias is None else {"bias": one.bias})
    for name, reference in references.items():
        tensors |= {f"{name}|windows": reference.windows, f"{name}|hidden": reference.hidden}
    about = {name: [reference.first, reference.text] for name, reference in references.items()}
    write_tensors(path, tensors, {"softcap": one.softcap, "texts": about})


def read_references(path: Path) -> dict[str, Reference]:
    """The texts of a file of `write_references`, by name, in their order; InputError where it is another."""
    tensors, about = read_tensors(path)
    try:
        head, bias, cap = tensors["head"], tensors.get("bias"), about["softcap"]
        return {
            name: Reference(tensors[f"{name}|windows"], tensors[f"{name}|hidden"], head, bias, cap, int(first), text)
            for name, (first, text) in about["texts"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{path} is damaged; copy it again or train the supernet again") from None


def narrowest(weight: Tensor) -> Tensor:
    """The same numbers in bfloat16 or float16 where these hold them all."""
    kinds = (kind for kind in EXACT if weight.dtype != kind and torch.equal(weight.to(kind).to(weight.dtype), weight))
    kind = next(kinds, None)
    return weight if kind is None else weight.to(kind)
