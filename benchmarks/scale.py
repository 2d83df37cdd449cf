"""What models of 7B, 8B and 70B take: bytes of every item and FLOP of a token, from their configs alone.

    python benchmarks/scale.py

No weights are read: the models are made on the meta device. What autograd keeps of a decoder block is counted on small
blocks of the same architecture and scaled, since it is linear in the block's widths and in the tokens; everything else
is arithmetic on shapes. docs/scale.md holds the tables that this prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from claims import Claim, finish
from transformers import LlamaConfig, LlamaForCausalLM

from supernet.adapters import ADAPTERS
from supernet.build import build
from supernet.choices import make_space
from supernet.formats import FORMATS
from supernet.grids.packing import packed_bytes
from supernet.model import HEAD_TOKENS_OF_GPU, checkpoint_blocks, hidden_states, spec_of, spec_of_model
from supernet.quantize import quantize
from supernet.quantizers import RTN
from supernet.recipe import Recipe
from supernet.refiners import Learned
from supernet.refiners.starts import STARTS
from supernet.spec import LinearSpec, ModelSpec, UnitSpec
from supernet.stages.amounts import CALIBRATION, LEARNING
from supernet.text.sampling import CACHE_BYTES, sequences_at_once
from supernet.train import QUANTIZED, TEACHING_BITS

SHAPES: dict[str, dict[str, int]] = {  # of the published configs
    "Llama-2-7B": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    },
    "Llama-3.1-8B": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    },
    "Llama-3-70B": {
        "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    },
}  # fmt: skip
RECIPE = Recipe()  # bits and adapters of the default
FORMAT, GROUPS = FORMATS[RECIPE.grid], RECIPE.sizes()  # its group size by bits
NARROW = min(RECIPE.adapted_bits)
RANK = 16
WINDOWS, TOKENS = 4, 2048  # of the batch that activations are counted for
STEPS = 2000
FLOAT32, BFLOAT16 = 4, 2
GPU_BYTES = 80e9
TFLOPS = 100  # sustained, of the example of the hours


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    specs = {name: spec_of(config(**shape), name) for name, shape in SHAPES.items()}
    kept = {adapter: Kept.measure(adapter) for adapter in ("scales", "lora")}
    print_table(("GB", *specs), [(what, *(gb(f(s)) for s in specs.values())) for what, f in HELD.items()])
    print_table(
        (f"GB for {WINDOWS} x {TOKENS} tokens", *specs),
        [
            (f"activations, {adapter}{', gradient checkpointing' if saving else ''}",
             *(gb(kept[adapter].activations(s, WINDOWS * TOKENS, saving)) for s in specs.values()))
            for adapter in kept for saving in (False, True)
        ],
    )  # fmt: skip
    print_table(("preparation", *specs), [(w, *(f(s) for s in specs.values())) for w, f in PREPARATION.items()])
    cases = [
        Training(specs["Llama-2-7B"], kept["scales"], processes=1, windows=4),
        Training(specs["Llama-3.1-8B"], kept["scales"], processes=1, windows=1),
        Training(specs["Llama-3.1-8B"], kept["scales"], processes=1, windows=1, teacher=QUANTIZED),
        Training(specs["Llama-3-70B"], kept["scales"], processes=8, windows=1),
        Training(specs["Llama-3-70B"], kept["scales"], processes=8, windows=1, teacher=QUANTIZED),
        Training(specs["Llama-3-70B"], kept["lora"], processes=8, windows=1),
        Training(specs["Llama-3-70B"], kept["scales"], processes=16, windows=1),
    ]
    names = [case.name for case in cases]
    items = [case.items() for case in cases]
    rows = [(what, *(gb(item[what]) for item in items)) for what in items[0]]
    print_table(("GB on each", *names), [*rows, ("sum", *(gb(sum(item.values())) for item in items))])
    print_table(("FLOP", *specs), [(what, *(f(s) for s in specs.values())) for what, f in WORK.items()])
    # None: beside the full model, scales of 70B on 8 GPUs leave an allocator nothing
    limits = (48e9, 48e9, 24e9, None, GPU_BYTES, GPU_BYTES, GPU_BYTES)
    claims = [
        Claim(f"bytes on each GPU, {name}", sum(item.values()), limit)
        for name, item, limit in zip(names, items, limits, strict=True)
        if limit is not None
    ]
    finish(__file__, claims, items=dict(zip(names, items, strict=True)))


def config(**shape: int) -> Any:
    return LlamaConfig(**{"tie_word_embeddings": False, **shape})


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """In Markdown."""
    for row in (headers, ["---", *("---:" for _ in headers[1:])], *rows):
        print(f"| {' | '.join(row)} |")
    print()


def gb(size: float) -> str:
    return f"{size / 1e9:.2f}"


# --- what is held -------------------------------------------------------------------------------------------------


def linears(spec: ModelSpec) -> list[LinearSpec]:
    return [linear for unit in spec.units if not unit.is_table for linear in unit.linears]


def tables(spec: ModelSpec) -> list[LinearSpec]:
    return [linear for unit in spec.units if unit.is_table for linear in unit.linears]


def parameters(spec: ModelSpec) -> int:
    return spec.float_parameters + sum(linear.weights for linear in (*linears(spec), *tables(spec)))


def code_bytes(which: Sequence[LinearSpec], bits: int) -> int:
    return sum(linear.out_features * packed_bytes(linear.in_features, bits) for linear in which)


def scale_bytes(weights: int, bits: int) -> int:
    return FORMAT.side_bits(bits, GROUPS[bits], weights) // 8


def stored_bytes(which: Sequence[LinearSpec], bits: int) -> int:
    return code_bytes(which, bits) + sum(scale_bytes(linear.weights, bits) for linear in which)


def drawn_bytes(spec: ModelSpec) -> int:
    """What a training step may draw: the bit-widths that have adapters, and the widest of the tables."""
    return sum(stored_bytes(linears(spec), b) for b in RECIPE.adapted_bits) + stored_bytes(
        tables(spec), max(RECIPE.bits)
    )


def supernet_bytes(spec: ModelSpec) -> int:
    """Every linear at every bit-width, embedding and head at theirs."""
    return sum(stored_bytes(linears(spec), b) for b in RECIPE.bits) + table_bytes(spec)


def table_bytes(spec: ModelSpec) -> int:
    return sum(stored_bytes(tables(spec), bits) for bits in FORMAT.table_bits)


def adapter_parameters(spec: ModelSpec, adapter: str, bits: int) -> int:
    if adapter == "scales":
        return sum(linear.weights // GROUPS[bits] for linear in linears(spec))
    return sum(RANK * (linear.in_features + linear.out_features) for linear in linears(spec))


def adapter_bytes(spec: ModelSpec, adapter: str) -> int:
    """Adapters at every trained bit-width, and Adam's two moments of those that a step has drawn: in the end, all."""
    return 3 * FLOAT32 * sum(adapter_parameters(spec, adapter, bits) for bits in RECIPE.adapted_bits)


def gradient_bytes(spec: ModelSpec, adapter: str) -> int:
    """A step leaves gradients on the adapters of its subnet alone. Of the one with the most."""
    return FLOAT32 * max(adapter_parameters(spec, adapter, bits) for bits in RECIPE.adapted_bits)


HELD: dict[str, Any] = {
    "full weights, bfloat16": lambda s: BFLOAT16 * parameters(s),
    "full weights, float32": lambda s: FLOAT32 * parameters(s),
    **{
        f"codes of the linears at {bits} bits, and scales": lambda s, bits=bits: stored_bytes(linears(s), bits)
        for bits in RECIPE.bits
    },
    "codes of embedding and head at 4 and 8 bits": table_bytes,
    f"supernet at {', '.join(map(str, RECIPE.bits))} bits": supernet_bytes,
    **{
        f"{name} at {len(RECIPE.adapted_bits)} bit-widths, with Adam": lambda s, a=adapter: adapter_bytes(s, a)
        for adapter, name in (("scales", "scales"), ("lora", f"LoRA of rank {RANK}"))
    },
    "gradients of one subnet's scales": lambda s: gradient_bytes(s, "scales"),
}


# --- activations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps of a bfloat16 decoder block for each token: so much for each unit of hidden size, of
    keys' and of the MLP's width, and a constant; with checkpointing, of its input alone."""

    adapter: str
    whole: tuple[float, ...]
    saving: tuple[float, ...]

    @classmethod
    def measure(cls, adapter: str) -> Kept:
        shapes = [(4, 1, 256), (8, 1, 256), (4, 2, 256), (4, 1, 512)]  # heads, heads of keys, width of the MLP
        matrix = [[128 * heads, 128 * keys, mlp, 1] for heads, keys, mlp in shapes]
        found = [
            np.linalg.solve(matrix, [per_block_and_token(adapter, *shape, saving) for shape in shapes])
            for saving in (False, True)
        ]
        return cls(adapter, *(tuple(part.round(6).tolist()) for part in found))

    def activations(self, spec: ModelSpec, tokens: int, saving: bool) -> float:
        """With checkpointing, one block is whole at a time: the one that goes backward."""
        widths = widths_of(spec)
        whole, inputs = (float(np.dot(part, widths)) for part in (self.whole, self.saving))
        return tokens * (spec.num_layers * inputs + whole if saving else spec.num_layers * whole)


def widths_of(spec: ModelSpec) -> tuple[int, int, int, int]:
    mlp = next(unit for unit in spec.units if unit.role == "down").linears[0].in_features
    return spec.hidden_size, spec.num_kv_heads * spec.head_dim, mlp, 1


def per_block_and_token(adapter: str, heads: int, keys: int, mlp: int, saving: bool) -> float:
    """Differences leave what grows with blocks and tokens: no weights, no embedding."""
    short, long = 32, 64
    (a, b), (c, d) = (
        [kept_bytes(adapter, heads, keys, mlp, layers, tokens, saving) for tokens in (short, long)]
        for layers in (1, 2)
    )  # fmt: skip
    return ((d - c) - (b - a)) / (long - short)


def kept_bytes(adapter: str, heads: int, keys: int, mlp: int, layers: int, tokens: int, saving: bool) -> int:
    """What autograd keeps of a pass through a tiny supernet, each storage once."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 64, "hidden_size": 128 * heads, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": keys,
    }  # fmt: skip
    model = LlamaForCausalLM(config(**shape)).eval().requires_grad_(False)
    spec = spec_of_model(model, "block")
    space = make_space(spec, (NARROW,), GROUPS, grid=RECIPE.grid)
    ids = torch.zeros(1, tokens, dtype=torch.long)
    supernet = build(model, spec, space, quantize(model, spec, space, RTN(), ids))
    supernet.adapt(ADAPTERS[adapter], (NARROW,), seed=0)
    supernet.set_dtype(torch.bfloat16)
    supernet.activate(space.uniform(spec, NARROW))
    if saving:
        checkpoint_blocks(supernet.model)
    kept: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        hidden_states(supernet.model, ids)
    return sum(kept.values())


# --- preparation --------------------------------------------------------------------------------------------------


def hessian_bytes(units: Sequence[UnitSpec]) -> int:
    return sum(FLOAT32 * lin.in_features**2 for unit in units if not unit.is_table for lin in unit.linears)


def layer_units(spec: ModelSpec) -> list[UnitSpec]:
    return [unit for unit in spec.units if unit.layer == 0]


def block_bytes(spec: ModelSpec) -> int:
    return FLOAT32 * sum(unit.weights for unit in layer_units(spec))


def state_bytes(spec: ModelSpec) -> int:
    """What each block reads of the calibration windows, and what the last one makes: they wait for the way back."""
    return BFLOAT16 * CALIBRATION * RECIPE.window_tokens * spec.hidden_size * (spec.num_layers + 1)


def gptq_bytes(spec: ModelSpec) -> int:
    """GPTQ solves all bit-widths of a linear at once: what is left of the weights and the codes, both in float32."""
    return 2 * FLOAT32 * len(RECIPE.bits) * max(lin.weights for unit in layer_units(spec) for lin in unit.linears)


def chain_bytes(spec: ModelSpec) -> int:
    """Learned rounding: every window's activations at one block, of the full model before and after the block, of each
    learned bit-width from every start, while these are tried."""
    chains = 2 + sum(bits <= Learned().widest for bits in RECIPE.bits) * len(STARTS)
    return BFLOAT16 * LEARNING * RECIPE.window_tokens * spec.hidden_size * chains


def learned_block_bytes(spec: ModelSpec) -> int:
    """Of one block at one bit-width, for each weight: a float32 offset, its gradient, Adam's two moments and a byte for
    its position; the weight, and what GPTQ moved it to, in float32; and the full model's block, which reads what ours
    reads."""
    return (6 * FLOAT32 + 1 + BFLOAT16) * sum(unit.weights for unit in layer_units(spec))


def cache(spec: ModelSpec) -> str:
    shape = config(**SHAPES[spec.name])
    side_by_side = sequences_at_once(shape, RECIPE.window_tokens, BFLOAT16)
    used = spec.kv_bytes_per_token(BFLOAT16) * RECIPE.window_tokens * side_by_side
    assert used <= CACHE_BYTES
    return f"{gb(used)} GB, {side_by_side} sequences"


PREPARATION: dict[str, Any] = {
    "one decoder block, float32": lambda s: f"{gb(block_bytes(s))} GB",
    "Hessians of one decoder block": lambda s: f"{gb(hessian_bytes(layer_units(s)))} GB",
    f"hidden states of the {CALIBRATION} windows, what every block reads": lambda s: f"{gb(state_bytes(s))} GB",
    "GPTQ's working set on the widest linear": lambda s: f"{gb(gptq_bytes(s))} GB",
    "learned rounding: activations of its chains": lambda s: f"{gb(chain_bytes(s))} GB",
    "learned rounding: one block at one bit-width": lambda s: f"{gb(learned_block_bytes(s))} GB",
    "KV cache of the text that the model writes": cache,
}


# --- training on GPUs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """A training step with gradient checkpointing, `windows` of `TOKENS` on each of `processes` GPUs."""

    spec: ModelSpec
    kept: Kept
    processes: int
    windows: int
    teacher: str = "full"

    @property
    def name(self) -> str:
        quantized = ", taught by codes" if self.teacher == QUANTIZED else ""
        many = "s" if self.processes > 1 else ""
        return f"{self.spec.name}, {self.kept.adapter}{quantized}, {self.processes} GPU{many}"

    def items(self) -> dict[str, float]:
        spec, adapter = self.spec, self.kept.adapter
        n, full = self.processes, self.teacher != QUANTIZED
        every = (*linears(spec), *tables(spec))
        table_weights = sum(linear.weights for linear in tables(spec))
        block = sum(unit.weights for unit in layer_units(spec))
        return {
            "teacher's blocks, shared out": BFLOAT16 * (parameters(spec) - table_weights) / n
            if full
            else stored_bytes(linears(spec), TEACHING_BITS) / n,
            "teacher's embedding and head": BFLOAT16 * table_weights * full,
            "teacher's blocks that are whole, two at most": 2 * BFLOAT16 * block if n > 1 and full else 0,
            "codes and scales that steps draw, shared out": drawn_bytes(spec) / n,
            "scales that are whole, of one block": max(scale_bytes(block, b) for b in RECIPE.bits) if n > 1 else 0,
            "supernet's embedding, as it is multiplied": BFLOAT16 * tables(spec)[0].weights,
            "widest matrix made again: codes, weights and their gradient": 3
            * BFLOAT16
            * max(lin.weights for lin in every),
            "adapters, with Adam": adapter_bytes(spec, adapter),
            "gradients of the adapters": gradient_bytes(spec, adapter) * (2 if n > 1 else 1),  # and the flat copy
            "activations, gradient checkpointing": self.kept.activations(spec, self.windows * TOKENS, True),
            f"logits of {HEAD_TOKENS_OF_GPU} tokens, four float32 copies": 4
            * FLOAT32
            * HEAD_TOKENS_OF_GPU
            * spec.vocab_size,
        }


# --- work ---------------------------------------------------------------------------------------------------------


def pass_flop(spec: ModelSpec, tokens: int) -> float:
    """Of one token, forward: two for each weight that it meets, and its attention to half of a window on average."""
    weights = spec.linear_weights + spec.vocab_size * spec.hidden_size
    return 2 * weights + 2 * spec.num_layers * tokens * spec.num_heads * spec.head_dim


def step_flop(spec: ModelSpec, tokens: int, adapter: str = "scales", checkpointing: bool = False) -> float:
    """Of one token of a supernet's step with one subnet: teacher forward; student forward, again where checkpointed,
    and backward to the activations. Scales also need the gradient of every matrix, as large a product as the forward
    one; a LoRA needs three passes through its own parameters. Attention costs twice as much backward.
    """
    attention = 2 * spec.num_layers * tokens * spec.num_heads * spec.head_dim
    passes = (4 if checkpointing else 3) * pass_flop(spec, tokens) + attention
    own = spec.linear_weights if adapter == "scales" else 3 * adapter_parameters(spec, adapter, NARROW)
    return passes + 2 * own


def lora_flop(spec: ModelSpec, tokens: int) -> float:
    """Of one token of a plain LoRA step on the full model."""
    attention = 2 * spec.num_layers * tokens * spec.num_heads * spec.head_dim
    return 2 * pass_flop(spec, tokens) + attention + 2 * 3 * adapter_parameters(spec, "lora", NARROW)


def hours(spec: ModelSpec) -> str:
    flop = step_flop(spec, TOKENS, checkpointing=True) * STEPS * WINDOWS * TOKENS
    return f"{flop / (TFLOPS * 1e12 * 3600):.1f}"


WORK: dict[str, Any] = {
    **{
        f"a token of a step, {adapter}{', gradient checkpointing' if saving else ''}": lambda s, a=adapter, c=saving: (
            f"{step_flop(s, TOKENS, a, c) / 1e9:.0f} G"
        )
        for adapter in ("scales", "lora")
        for saving in (False, True)
    },
    "a token of a plain LoRA step": lambda s: f"{lora_flop(s, TOKENS) / 1e9:.0f} G",
    f"{STEPS} steps of {WINDOWS} x {TOKENS} tokens, scales, gradient checkpointing": lambda s: (
        f"{step_flop(s, TOKENS, checkpointing=True) * STEPS * WINDOWS * TOKENS / 1e18:.1f} E"
    ),
    f"hours of that at a sustained {TFLOPS} TFLOP/s (arithmetic, not a measurement)": hours,
}


if __name__ == "__main__":
    main()
