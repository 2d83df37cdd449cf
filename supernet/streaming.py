"""Making the supernet of a model that does not fit in memory: from its files and back to files, block by block.

Weights stay in the model's files (`supernet.absent`), codes and hidden states on a shelf (`supernet.shelf`). What would
need all of it at once, text that the model writes itself, learned codes, training, is refused before any work.
"""

from __future__ import annotations

from dataclasses import replace

from records.errors import InputError
from supernet.recipe import AUTO, Recipe
from supernet.refiners import REFINERS


def in_the_way(recipe: Recipe) -> tuple[str, ...]:
    """The options that a recipe would need to be made from files, where it has others."""
    found = []
    if recipe.adapted_bits:
        found.append("--train-bits none")
    if recipe.quantizer in REFINERS or recipe.block_steps is not None:
        found.append("--quantizer gptq")
    if recipe.data is None:
        found.append("--data FILE")
    if recipe.prune:
        found.append("no --prune")
    return tuple(found)


def as_streamed(recipe: Recipe) -> Recipe:
    """The recipe as it is made from files: what it leaves open is decided. InputError where it cannot be."""
    options = in_the_way(recipe)
    if options:
        raise InputError(f"a model that stays in its files is quantized and not trained; use {' '.join(options)}")
    return replace(recipe, quantizer="gptq" if recipe.quantizer == AUTO else recipe.quantizer)
