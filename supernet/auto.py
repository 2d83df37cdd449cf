"""What a recipe leaves open: how codes are found, and which subnets a step trains.

Learned codes are better where there is time to settle them, and are then trained with uniform subnets, since each
bit-width's make up for errors of their own (docs/log.md). How much time they take depends on the model and the device,
so one block is timed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from supernet.blocks import decoder_layers, first_inputs, layer_arguments, output_of, placed, sent
from supernet.model import compute_dtype
from supernet.recipe import AUTO, Recipe
from supernet.refiners import REFINERS, Learned
from supernet.timing import seconds_of

ENOUGH = 80  # steps on each block, from which on learned codes were measured better; fewer were not
INSIDE = 3.0  # times that a step inside the rounding, and what it needs, takes of a block's own way forward and back


def decided(recipe: Recipe, model: Any, windows: Tensor, learning_seconds: float | None = None) -> Recipe:
    """The recipe with nothing left open. Blocks are timed where `windows` are; learning and training may take so long,
    or the recipe's minutes."""
    quantizer, sampler = recipe.quantizer, recipe.sampler
    if quantizer == AUTO:
        minutes = recipe.code_minutes(learning_seconds)
        learns = recipe.block_steps is not None or (
            minutes is not None and steps_that_fit(model, windows, recipe.bits, minutes) >= ENOUGH
        )
        quantizer = "learned" if learns else "gptq"
    if sampler == AUTO:
        sampler = "slimmable" if quantizer in REFINERS else "balanced"
    return replace(recipe, quantizer=quantizer, sampler=sampler)


def steps_that_fit(model: Any, windows: Tensor, bits: tuple[int, ...], minutes: float) -> float:
    """About how many steps of learned rounding each block and bit-width can take."""
    learned, device = Learned(), windows.device
    dtype, layers, few = compute_dtype(device), decoder_layers(model), windows[: learned.batch]
    arguments = sent(layer_arguments(model, few[:1])[0], device, dtype)
    inputs = sent(first_inputs(model, few), device, dtype).requires_grad_()
    with placed(layers[0], device, dtype), torch.enable_grad():
        seconds = INSIDE * seconds_of(lambda: output_of(layers[0], inputs, arguments).sum().backward())
    widths = sum(width <= learned.widest for width in bits)
    return 60 * minutes / (seconds * len(layers) * widths) if widths else 0.0
