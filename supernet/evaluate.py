"""How far a subnet is from the full model: KL divergence per token, perplexity, top-1 agreement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from supernet.build import Progress, Supernet, silent
from supernet.model import hidden_states, logits_of
from supernet.space import Subnet


@dataclass(frozen=True)
class Quality:
    """`kl` in nats per token from the full model; `top1` the share of tokens whose likeliest successor is the same."""

    kl: float
    perplexity: float
    top1: float
    tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Quality:
        return cls(float(data["kl"]), float(data["perplexity"]), float(data["top1"]), int(data["tokens"]))


@dataclass(frozen=True)
class Reference:
    """What the full model says of held-out windows, kept small: its last hidden states and its head.

    windows: int64 `(n, tokens)`; hidden: float32 `(n, tokens, hidden_size)`; head: `(vocab_size, hidden_size)`;
    bias: `(vocab_size,)` or None; softcap: the cap on the logits of the models that have one.
    """

    windows: Tensor
    hidden: Tensor
    head: Tensor
    bias: Tensor | None = None
    softcap: float | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, windows: Tensor, progress: Progress = silent) -> Reference:
        hidden = []
        for number, window in enumerate(windows):
            hidden.append(hidden_states(model, window.unsqueeze(0).to(model.device)).squeeze(0).float())
            progress("full model", number + 1, len(windows))
        head = model.get_output_embeddings()
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return cls(windows, torch.stack(hidden), head.weight.detach(), getattr(head, "bias", None), cap)

    def log_probs(self, number: int) -> Tensor:
        """The full model's log probabilities for window `number`, float32 `(tokens, vocab_size)`."""
        bias = None if self.bias is None else self.bias.float()
        logits = torch.nn.functional.linear(self.hidden[number], self.head.float(), bias)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.log_softmax(-1)


Logits = Callable[[Tensor], Tensor]  # ids (1, tokens) -> logits (1, tokens, vocab_size)


@torch.no_grad()
def compare(logits: Sequence[Logits], reference: Reference, progress: Progress = silent) -> list[Quality]:
    """The quality of each model given by its logits; the full model's part is computed once for all."""
    sums = torch.zeros(len(logits), 3, dtype=torch.float64)
    for number, window in enumerate(reference.windows):
        full = reference.log_probs(number)
        target, best = window[1:].to(full.device), full.argmax(-1)
        for index, function in enumerate(logits):
            ours = function(window.unsqueeze(0).to(full.device)).squeeze(0).float().log_softmax(-1)
            kl = torch.nn.functional.kl_div(ours, full, reduction="sum", log_target=True)
            nll = -ours[:-1].gather(1, target.unsqueeze(1)).sum()
            agree = (ours.argmax(-1) == best).sum()
            sums[index] += torch.stack([kl, nll, agree.float()]).double().cpu()
            progress("evaluate", number * len(logits) + index + 1, len(reference.windows) * len(logits))
    tokens, successors = reference.windows.numel(), reference.windows[:, 1:].numel()
    return [
        Quality(kl / tokens, math.exp(min(nll / successors, 700.0)), agree / tokens, tokens)
        for kl, nll, agree in sums.tolist()
    ]


def evaluate(
    supernet: Supernet, subnets: Sequence[Subnet], reference: Reference, progress: Progress = silent
) -> list[Quality]:
    """The quality of each subnet on the reference's windows, computed in float32."""
    supernet.set_dtype(torch.float32)

    def logits(subnet: Subnet) -> Logits:
        def run(ids: Tensor) -> Tensor:
            supernet.activate(subnet)
            return logits_of(supernet.model, hidden_states(supernet.model, ids))

        return run

    return compare([logits(subnet) for subnet in subnets], reference, progress)
