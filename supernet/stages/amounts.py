"""How much text the stages of making a supernet read, and what they cost with it."""

from __future__ import annotations

from typing import Any

import torch

from supernet.evidence import proof_tokens
from supernet.expected import Cost, Pass, expected_seconds, step_seconds
from supernet.recipe import Recipe
from supernet.spec import ModelSpec
from supernet.train import LEAST_STEPS, TIMED

READ = 4096  # windows that are drawn from a text at most
MEASURED = 4  # windows of each text that subnets are measured on; none of them trains
OWN_MEASURED = 8  # windows of a text that was given for that
SAMPLED = 124  # windows that a model writes for itself: with those held out, one batch of generation
ORDERING = 16  # windows that tell which channels matter, and how large they are
CALIBRATION = 64  # windows for the Hessians
LEAST_CALIBRATION = 8  # of them, where minutes are few
OF_HEAD = 24  # windows of the Python manual for the head's, besides
LEARNING = 512  # windows for a quantizer that learns
TRIAL = 12  # windows that adapters are tried on
LEAST_TRIAL = 3  # of them, where minutes are few
SENSITIVITY = 4  # windows for the sensitivities' gradients


def stage_costs(model: Any, spec: ModelSpec, recipe: Recipe, device: torch.device) -> tuple[dict[str, Cost], float]:
    """What work costs by the name that the clock knows it by, and the seconds that training takes at the least."""
    windows = {
        "sample text": MEASURED + SAMPLED,
        "held out": MEASURED,
        "scale channels": ORDERING,
        "quantize": CALIBRATION + OF_HEAD,
        "try adapters": TRIAL,
        "sensitivities": SENSITIVITY,
    }
    tokens = {stage: recipe.window_tokens * count for stage, count in windows.items()}
    tokens["proof"] = proof_tokens(model, spec)
    one = Pass.measure(model, device, recipe.window_tokens)
    steps = LEAST_STEPS + TIMED if recipe.adapted_bits else 0
    least = steps * step_seconds(one, recipe.batch * recipe.window_tokens)
    return expected_seconds(spec, one, recipe, tokens), least
