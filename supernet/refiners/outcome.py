"""What the codes of a block cost where it counts: at the model's output, the blocks after it being the full model's.

A block's own error does not tell that: on SmolLM2's third block GPTQ's codes leave a quarter to two thirds less of it,
and the model then loses more (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from supernet.blocks import decoder_layers, placed, skipped
from supernet.model import head_tokens, hidden_states, logits_of
from supernet.refiners.turn import outputs_of


@torch.no_grad()
def losses_at_output(
    model: Any, number: int, arguments: Sequence[dict[str, Any]], windows: Tensor, states: Sequence[Tensor]
) -> list[float]:
    """KL per token from the model, in nats, for each of `states[1:]`: outputs of block `number` on `windows`
    `(n, tokens)`. The model's own output of that block is `states[0]`.

    `arguments` are what each block is called with. Blocks compute where the windows are.
    """
    for layer, given in zip(decoder_layers(model)[number + 1 :], arguments[number + 1 :], strict=True):
        with placed(layer, windows.device):
            states = [outputs_of(layer, state, given) for state in states]
    full, *others = (_last(model, windows, state) for state in states)
    head = model.get_output_embeddings()
    sums = torch.zeros(len(others), dtype=torch.float64, device=windows.device)
    at_once = head_tokens(windows.device)
    with placed(head, windows.device):
        for start in range(0, len(full), at_once):
            rows = slice(start, start + at_once)
            target = logits_of(model, full[rows]).float().log_softmax(-1)
            for index, hidden in enumerate(others):
                ours = logits_of(model, hidden[rows]).float().log_softmax(-1)
                sums[index] += torch.nn.functional.kl_div(ours, target, reduction="sum", log_target=True)
    return (sums / len(full)).tolist()


def _last(model: Any, windows: Tensor, state: Tensor) -> Tensor:
    """What the head reads, `(n * tokens, hidden_size)`, where the last block makes `state`."""
    with skipped(decoder_layers(model), state.to(model.device)):
        return hidden_states(model, windows.to(model.device)).flatten(0, 1).to(windows.device)
