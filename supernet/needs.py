"""How much memory and disk a training takes, from what the model is made of and the recipe alone, before any work.

Estimates: `tests/supernet/test_needs.py` holds them against measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from supernet.adapters import ADAPTERS
from supernet.choices import table_bits
from supernet.grids.packing import packed_bytes
from supernet.quantizers import QUANTIZERS
from supernet.recipe import Recipe
from supernet.space import Choice
from supernet.spec import LinearSpec, ModelSpec

LIBRARIES_BYTES = 400_000_000  # Python, torch and transformers, before a model is read
FLOAT_BYTES = 4
FULL_MODELS = 2.0  # in float32 at once, or copies in the dtype of training as large together
ADAM = 2  # moments of each parameter that trains, beside its gradient
DEFAULT_RANK = 16
EXPERTS = 4  # adapters of the kind that mixes experts hold about so many
HELD = (8, 4)  # vectors as wide as the hidden size, and as the feed-forward block, kept of a token for the way back
SIDE_BY_SIDE = 2  # windows of a pass with gradients (`supernet.sensitivity`)
OPENED = 6.5  # float copies of the widest matrix while its codes are made or computed with, by measured peaks
LOGITS = 6  # float copies of a window's logits, where subnets are measured
BESIDE_BYTES = 30_000_000  # windows, what the full model says of them, tokenizer, proof
WINDOWS = 64  # of the calibration
STATES = 3  # copies of what a block reads of them: that, what it makes, and gradients
OPENED_TABLES = 4  # float copies of a head while its codes are found
HEAP_BYTES = 100_000_000  # that a stage freed and its process keeps
TALL, FACTORS = 8192, 6  # rows that GPTQ solves at a time; copies of a Hessian while its factor is made
CHECKPOINTS = 2  # the one on disk and the one that takes its place


@dataclass(frozen=True)
class Needs:
    """`memory_bytes` is the peak expected, `least_bytes` what is there at once however it goes."""

    memory_bytes: int
    least_bytes: int
    disk_bytes: int


def needs_of(spec: ModelSpec, recipe: Recipe) -> Needs:
    """Peak memory of one process on the CPU, and what its folder takes while training."""
    weights = sum(unit.weights for unit in spec.units)
    parameters = weights + spec.float_parameters
    codes = _codes(spec, recipe)
    adapters = adapter_parameters_of(spec, recipe) * FLOAT_BYTES
    layers = 2 if recipe.checkpointing else spec.num_layers
    passes = layers * recipe.batch * recipe.window_tokens * _kept(spec) * FLOAT_BYTES
    logits = LOGITS * recipe.window_tokens * spec.vocab_size * FLOAT_BYTES
    opened = int(OPENED * max(linear.weights for unit in spec.units for linear in unit.linears)) * FLOAT_BYTES
    least = LIBRARIES_BYTES + parameters * FLOAT_BYTES + codes + (2 + ADAM) * adapters
    memory = (
        least
        + int((FULL_MODELS - 1) * parameters * FLOAT_BYTES)
        + ADAM * adapters  # the copy that a checkpoint is written from
        + max(HEAP_BYTES + _finding(spec, recipe), opened)
        + passes
        + logits
    )
    head = spec.vocab_size * spec.hidden_size * FLOAT_BYTES
    disk = 2 * codes + head + CHECKPOINTS * (1 + ADAM) * adapters + spec.float_parameters * FLOAT_BYTES
    return Needs(memory, least, disk + BESIDE_BYTES)


def streamed_needs(spec: ModelSpec, recipe: Recipe) -> Needs:
    """The same where the model stays in its files (`supernet.streaming`): a block at a time, and what finding its codes
    takes beside it; on disk the codes twice, and what the blocks read meanwhile."""
    head = spec.head.linears[0]
    block = max(sum(linear.weights for linear in block) for block in _blocks(spec)) * FLOAT_BYTES
    states = WINDOWS * recipe.window_tokens * spec.hidden_size * FLOAT_BYTES
    memory = (
        LIBRARIES_BYTES
        + HEAP_BYTES
        + max(block + _finding(spec, recipe) + STATES * states, OPENED_TABLES * head.weights * FLOAT_BYTES)
    )
    needs = needs_of(spec, recipe)
    return Needs(memory, memory, needs.disk_bytes + spec.num_layers * states)


def _blocks(spec: ModelSpec) -> list[list[LinearSpec]]:
    """The linears of each."""
    layers = range(spec.num_layers)
    return [[linear for unit in spec.units if unit.layer == layer for linear in unit.linears] for layer in layers]


def _finding(spec: ModelSpec, recipe: Recipe) -> int:
    """What finding a block's codes takes beside its weights: the Hessians of all its linears, and what is solved at a
    time, which is counted as the largest while its factor is made: by measured peaks that holds for two."""
    quantizer = QUANTIZERS.get(recipe.quantizer)
    outputs, widths = quantizer is not None and quantizer.needs_outputs, len(recipe.bits)
    found = 0
    for block in _blocks(spec):
        hessians = sum(linear.in_features**2 + outputs * linear.out_features**2 for linear in block)
        found = max(found, hessians * FLOAT_BYTES + max(_solving(linear, widths, outputs) for linear in block))
    return found


def _solving(linear: LinearSpec, widths: int, outputs: bool) -> int:
    """GPTQ's working set: while a Hessian's factor is made, what that is made from; then the two and, of some rows at
    all bit-widths, what is left of them, codes, and the weights that they come from. With a Hessian of the `outputs`
    YAQA's: the first factor is there while the second is made, then both and twice as many of the rows."""
    rows, side = min(linear.out_features, TALL), linear.in_features
    moved = widths * rows * side
    if outputs:
        return FLOAT_BYTES * max(FACTORS * side**2, FACTORS * rows**2 + side**2, rows**2 + side**2 + 6 * moved)
    return FLOAT_BYTES * max(FACTORS * side**2, 2 * side**2 + 3 * moved)


def tuning_needs(spec: ModelSpec, recipe: Recipe) -> Needs:
    """The same where the scales of one subnet are trained: all choices are there since its loss was measured, and
    those that it has once more."""
    finest = max(recipe.bits, key=lambda bits: (-recipe.choice(bits).group_size, bits))
    alone = replace(
        recipe, adapter="scales", rank=None, sharing="decoupled", train_bits=(finest,), sampler="uniform",
        schedule="constant", teacher="full",
    )  # fmt: skip
    needs = needs_of(spec, alone)
    more = sum(code_bytes(linear, recipe.choice(finest)) for unit in spec.units for linear in unit.linears)
    return replace(needs, memory_bytes=needs.memory_bytes + more)


def searching_bytes(spec: ModelSpec, recipe: Recipe) -> int:
    """Peak memory of one process that searches by measuring: codes of all choices, and the gradients that slopes are
    taken from, float32 of every linear."""
    codes, gradients = _codes(spec, recipe), spec.linear_weights * FLOAT_BYTES
    head = spec.vocab_size * spec.hidden_size * FLOAT_BYTES
    passes = SIDE_BY_SIDE * spec.num_layers * recipe.window_tokens * _kept(spec) * FLOAT_BYTES
    opened = max(linear.weights for unit in spec.units for linear in unit.linears) * FLOAT_BYTES
    return LIBRARIES_BYTES + codes + gradients + head + spec.float_parameters * FLOAT_BYTES + passes + opened


def _codes(spec: ModelSpec, recipe: Recipe) -> int:
    """Bytes of the codes of all choices."""
    of_tables = table_bits(recipe.bits, recipe.grid)
    return sum(
        code_bytes(linear, recipe.choice(bits))
        for unit in spec.units
        for linear in unit.linears
        for bits in (of_tables if unit.is_table else recipe.bits)
    )


def _width(spec: ModelSpec) -> int:
    """Inputs of the widest linear."""
    return max(linear.in_features for unit in spec.units if not unit.is_table for linear in unit.linears)


def _kept(spec: ModelSpec) -> int:
    """Values of a token that a block keeps for its way back."""
    return HELD[0] * spec.hidden_size + HELD[1] * _width(spec)


def code_bytes(linear: LinearSpec, choice: Choice) -> int:
    """Codes, and what the grid keeps of each group."""
    sides = choice.format.side_bits(choice.bits, choice.group_size, linear.in_features) // 8
    return linear.out_features * (packed_bytes(linear.in_features, choice.bits) + sides)


def adapter_parameters_of(spec: ModelSpec, recipe: Recipe) -> int:
    adapter = ADAPTERS[recipe.adapter]
    linears = [linear for unit in spec.units if not unit.is_table for linear in unit.linears]
    if not adapter.ranked:
        choices = [recipe.choice(bits) for bits in recipe.adapted_bits]
        sides = [(c.group_size, 2 if c.bits in c.format.moving_zeros else 1) for c in choices]
        return sum(linear.weights // size * count for linear in linears for size, count in sides)
    rank = recipe.rank or DEFAULT_RANK
    each = sum(rank * (linear.in_features + linear.out_features) for linear in linears)
    return each * (EXPERTS if adapter.routes else len(recipe.adapted_bits))
