"""What the stages of a training will take on this machine, from a block, a head and a decoding step that are timed.

Everything else is counted: how often the windows of a stage go through the model, and what solving its matrices takes.
The counts are of the work; the factors were measured on SmolLM2-135M and a 0.5B shape (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from supernet.blocks import decoder_layers, first_inputs, layer_arguments, output_of, placed, sent
from supernet.choices import table_bits
from supernet.model import compute_dtype, head_tokens, logits_of
from supernet.recipe import Recipe
from supernet.spec import LinearSpec, ModelSpec
from supernet.timing import seconds_of

PROBED_WINDOWS = 2
CONTINUED = 32  # passes that a proof takes one token at a time
DECODED = 128  # sequences of the decoding step that is timed, as many as write side by side
GROWTH = 1.3  # of a decoding step until the windows are full
FLOAT32 = 2.0  # times that a pass in float32 takes of one in bfloat16
# On one core:
SOLVING_S = 6.5e-8  # GPTQ, for each weight and bit-width
SPREAD_S = 2e-11  # the errors of a matrix, for each row, bit-width and square of in_features
FACTOR_S = 1.5e-11  # a Hessian's factor, for each cube of in_features
SQUARE_S = 1.2e-11  # half a Hessian, for each token and square of in_features
MADE_S = 6e-9  # dequantizing, for each weight
ROUNDED_S = 1.8e-8  # rounding to nearest, for each weight
WIDENED_S = 2.2e-9  # to float32 for one pass, for each weight
STEP = 1.3  # times its passes that a step takes: codes are dequantized for each
FINDING_S = 4.0  # loading libraries, writing files


@dataclass(frozen=True)
class Cost:
    """Seconds of a stage: `fixed` whatever it reads, `text` with all of its windows."""

    fixed: float
    text: float = 0.0

    def at(self, share: float) -> float:
        return self.fixed + share * self.text


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
            some = inputs.flatten(0, 1)[: head_tokens(device)]
            logits = seconds_of(lambda: logits_of(model, some).float().log_softmax(-1), 1) / len(some)
        return cls(block * len(layers), logits, step * len(layers) + logits)


def expected_seconds(spec: ModelSpec, one: Pass, recipe: Recipe, tokens: Mapping[str, int]) -> dict[str, Cost]:
    """What each stage costs, in their order; `tokens` are those of all its windows.

    Work that a stage does on one core a matrix is shared by the cores.
    """
    widths, adapted = len(recipe.bits), len(recipe.adapted_bits)
    cores = torch.get_num_threads()
    shares = {linear: unit.share_computed for unit in spec.units if not unit.is_table for linear in unit.linears}
    linears = list(shares)
    head = next(unit for unit in reversed(spec.units) if unit.is_table).linears[0]
    weights = sum(linear.out_features * linear.in_features for linear in linears)
    made, rounded, widened = (seconds * weights / cores for seconds in (MADE_S, ROUNDED_S, WIDENED_S))
    exact = FLOAT32 * tokens["held out"] * one.whole  # the held-out windows once, in float32
    found = {
        "sample text": Cost(0.0, GROWTH * one.decode * tokens["sample text"])
        if recipe.data is None
        else Cost(FINDING_S),
        "plain rounding": Cost(2 * exact + widths * (exact + rounded)),
        "scale channels": Cost(2 * (exact + 2.5 * rounded), one.blocks * tokens["scale channels"]),
        "quantize": _solving(
            [(linear, widths, share) for linear, share in shares.items()]
            + [(head, len(table_bits(recipe.bits, recipe.grid)), 1.0)],
            tokens["quantize"],
            cores,
            3 * one.blocks,
            (widths + 4) * (exact + made),
        ),
        "try adapters": Cost(
            adapted * (4 * one.whole * tokens["held out"] + 16 * made), 7 * adapted * one.whole * tokens["try adapters"]
        ),
        "proof": Cost(CONTINUED * widened, FLOAT32 * one.whole * tokens["proof"]),
        "sensitivities": Cost(
            (widths + 3) * (exact + made) + 8 * widths * made, one.whole * (widths + 4) * tokens["sensitivities"]
        ),
    }
    return {stage: cost for stage, cost in found.items() if recipe.awq > 0 or stage != "scale channels"}


def _solving(
    linears: Sequence[tuple[LinearSpec, int, float]], tokens: int, cores: int, token_s: float, judged_s: float
) -> Cost:
    """Of the codes: matrices are solved, each at so many bit-widths, whatever the text; their Hessians are summed over
    it, those of an expert over its share."""
    fixed, text = judged_s, token_s * tokens
    for linear, widths, share in linears:
        side, solved = linear.in_features, widths * linear.out_features
        fixed += (solved * side * (SOLVING_S + SPREAD_S * side) + FACTOR_S * side**3) / cores
        text += SQUARE_S * side**2 * share * tokens / cores
    return Cost(fixed, text)


def step_seconds(one: Pass, tokens: int) -> float:
    """A training step of one subnet on so many tokens: a pass of the full model, and three of the subnet's."""
    return 4 * STEP * one.whole * tokens
