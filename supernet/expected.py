"""What the stages of a training will take on this machine, from a block, a head and a decoding step that are timed.

Everything else is counted: how often the windows of a stage go through the model, and what solving its matrices takes.
The counts are of the work; the factors were measured on SmolLM2-135M and a 0.5B shape (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from supernet.blocks import decoder_layers, first_inputs, layer_arguments, output_of, placed, sent
from supernet.model import HEAD_TOKENS, compute_dtype, logits_of
from supernet.spec import ModelSpec
from supernet.timing import seconds_of

PROBED_WINDOWS = 2
DECODED = 128  # sequences of the decoding step that is timed, as many as write side by side
GROWTH = 1.3  # of a decoding step until the windows are full
FLOAT32 = 2.0  # times that a pass in float32 takes of one in bfloat16
SOLVING_S = 8e-8  # GPTQ, for each weight and bit-width on one core
FACTOR_S = 1.5e-11  # a Hessian's factor, for each cube of in_features on one core
SQUARE_S = 1.2e-11  # half a Hessian, for each token and square of in_features on one core
WEIGHT_S = 6e-9  # dequantizing or rounding, for each weight on one core
FINDING_S = 4.0  # loading libraries, writing files


@dataclass(frozen=True)
class Pass:
    """Seconds a token: through the blocks, through the head, and of decoding, all in the dtype of computing."""

    blocks: float
    head: float
    decode: float

    @property
    def whole(self) -> float:
        return self.blocks + self.head

    @classmethod
    @torch.no_grad()
    def measure(cls, model: Any, device: torch.device, tokens: int) -> Pass:
        dtype, layers = compute_dtype(device), decoder_layers(model)
        ids = torch.arange(PROBED_WINDOWS * tokens).remainder(model.config.get_text_config().vocab_size)
        windows = ids.view(PROBED_WINDOWS, tokens).to(device)
        several, single = (
            sent(layer_arguments(model, windows[:1, :length])[0], device, dtype) for length in (tokens, 1)
        )
        inputs = sent(first_inputs(model, windows), device, dtype)
        last = inputs[:1, :1].expand(DECODED, 1, -1)
        with placed(layers[0], device, dtype):
            block = seconds_of(lambda: output_of(layers[0], inputs, several), 1) / ids.numel()
            step = seconds_of(lambda: output_of(layers[0], last, single), 1) / DECODED
        head = model.get_output_embeddings()
        with placed(head, device, dtype):
            some = inputs.flatten(0, 1)[:HEAD_TOKENS]
            logits = seconds_of(lambda: logits_of(model, some).float().log_softmax(-1), 1) / len(some)
        return cls(block * len(layers), logits, step * len(layers) + logits)


def expected_seconds(
    spec: ModelSpec, one: Pass, widths: int, adapted: int, tokens: Mapping[str, int], scales: bool, samples: bool
) -> dict[str, float]:
    """Seconds of each stage with all of its `tokens`, in their order.

    `widths` bit-widths are solved, `adapted` of them trained. Work that a stage does on one core a matrix is shared by
    the cores.
    """
    cores = torch.get_num_threads()
    linears = [linear for unit in spec.units if not unit.is_table for linear in unit.linears]
    weights = sum(linear.out_features * linear.in_features for linear in linears)
    made = WEIGHT_S * weights / cores  # the weights of one subnet
    judged = FLOAT32 * tokens["held out"] * one.whole + made
    found = {
        "sample text": GROWTH * one.decode * tokens["sample text"] if samples else FINDING_S,
        "plain rounding": (widths + 2) * judged,
        "scale channels": one.blocks * tokens["scale channels"] + 2 * judged if scales else 0.0,
        "quantize": 3 * one.blocks * tokens["quantize"] + widths * judged,
        "try adapters": adapted * (one.whole * (4 * tokens["held out"] + 7 * tokens["try adapters"]) + 8 * made),
        "proof": FLOAT32 * one.whole * tokens["proof"],
        "sensitivities": one.whole * (widths + 4) * tokens["sensitivities"] + (widths + 3) * judged,
    }
    for linear in linears:
        side, solved = linear.in_features, SOLVING_S * widths * linear.out_features * linear.in_features
        found["quantize"] += (SQUARE_S * side**2 * tokens["quantize"] + FACTOR_S * side**3 + solved) / cores
    return {stage: seconds for stage, seconds in found.items() if seconds}
