"""Full models: what they are made of, and how their logits are computed from hidden states."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from records.errors import InputError
from supernet import facts
from supernet.experts import Experts, unstacked
from supernet.spec import EMBEDDING, EXPERT_ROLES, HEAD, LinearSpec, ModelSpec, UnitSpec

ROLES = {"o_proj": "o", "down_proj": "down"}
HEAD_TOKENS = 128  # logits are made for so many tokens at a time: a vocabulary is wide, and a cache is not
HEAD_TOKENS_OF_GPU = 512  # the same there: fewer leave it waiting for the head's weights

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def spec_of(config: Any, name: str, trust_remote_code: bool = False) -> ModelSpec:
    """What a model is made of, from its Hugging Face config alone: the model is made on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = unstacked(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    return spec_of_model(model, name)


def spec_of_model(model: Any, name: str) -> ModelSpec:
    """What a model is made of, whose experts are linears (`supernet.experts`)."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    units = (*_tables(model), *_layer_units(model))
    quantized = {linear.name for unit in units for linear in unit.linears}
    floats = sum(p.numel() for n, p in model.named_parameters() if n.removesuffix(".weight") not in quantized)
    return ModelSpec(
        name=name,
        architecture=type(model).__name__,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=facts.head_dim(config),
        vocab_size=config.vocab_size,
        max_context=facts.max_context(config),
        tied=is_tied(model),
        float_parameters=floats,
        units=units,
        rotary_dim=facts.rotary_dim(config),
        windows=facts.windows(config),
        ropes=tuple(facts.rope_kind(rope) for rope in facts.ropes(config).values()),
        activation=facts.activation(config),
        features=facts.features(config),
    )


def is_tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def name_of(model: nn.Module, module: nn.Module) -> str:
    """The dotted name of a module inside its model."""
    return next(name for name, candidate in model.named_modules() if candidate is module)


def _linear_spec(name: str, module: nn.Module) -> LinearSpec:
    out_features, in_features = module.weight.shape  # type: ignore[misc]
    return LinearSpec(name, int(out_features), int(in_features), getattr(module, "bias", None) is not None)


def _tables(model: Any) -> list[UnitSpec]:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    name = name_of(model, embedding)
    units = [UnitSpec(name, EMBEDDING, None, (_linear_spec(name, embedding),))]
    if not is_tied(model):
        name = name_of(model, head)
        units.append(UnitSpec(name, HEAD, None, (_linear_spec(name, head),)))
    return units


def _layer_units(model: Any) -> list[UnitSpec]:
    units = []
    experts = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Experts))
    for name, module in model.named_modules():
        match = _LAYER.search(name)
        if isinstance(module, Experts) and match is not None:
            units += _expert_units(name, module, int(match[1]), model.config.get_text_config().num_experts_per_tok)
        elif isinstance(module, nn.Linear) and match is not None and not name.startswith(experts):
            tail = name.rpartition(".")[2]
            units.append(UnitSpec(name, ROLES.get(tail, tail), int(match[1]), (_linear_spec(name, module),)))
    if not units:
        raise InputError(f"{type(model).__name__} has no nn.Linear in its layers; bitfleet needs a decoder of linears")
    return units


def _expert_units(name: str, experts: Experts, layer: int, chosen: int) -> list[UnitSpec]:
    """One for each matrix that an expert has, of all experts together."""
    found = []
    for part, role in EXPERT_ROLES.items():
        linears = ((f"{name}.{number}.{part}", getattr(one, part)) for number, one in enumerate(experts))
        specs = tuple(_linear_spec(linear, module) for linear, module in linears)
        found.append(UnitSpec(f"{name}.{part}", role, layer, specs, chosen))
    return found


def refuse_checkpointing(model: Any) -> None:
    """InputError where the blocks of `model` cannot be computed again for the backward pass."""
    if not model.supports_gradient_checkpointing:
        raise InputError(
            f"{type(model).__name__} has no gradient checkpointing; train without --gradient-checkpointing"
        )


def checkpoint_blocks(model: Any) -> None:
    """From here on a pass with gradients keeps the input of each decoder block and computes the rest again.

    By transformers' own means, which `refuse_checkpointing` asks for. It checkpoints blocks in training mode only,
    so the blocks say that they train: their parts, dropout among them, stay in eval mode.
    """
    # transformers 5.23 renames it, and warns of the old name
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def hidden_states(model: Any, ids: Tensor) -> Tensor:
    """What the head reads: `(batch, tokens)` -> `(batch, tokens, hidden_size)`."""
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state


@contextlib.contextmanager
def removed_after(hooks: Sequence[Any]) -> Iterator[None]:
    """Remove the hooks, however the passes end."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def logits_of(model: Any, hidden: Tensor, ids: slice | None = None) -> Tensor:
    """The head, with the soft cap of the models that have one (Gemma 2); for some `ids` alone where the head is a
    supernet's."""
    head = model.get_output_embeddings()
    return capped(model, head(hidden) if ids is None else head(hidden, ids))


def head_gradient(model: Any, hidden: Tensor, slope: Callable[[slice, Tensor], Tensor]) -> Tensor:
    """The gradient of a loss with respect to what the head reads, `hidden` `(tokens, hidden_size)`.

    `slope` makes of some tokens' logits, float32 `(tokens, vocab_size)`, the loss's gradient with respect to them. The
    head is frozen, so that each stretch of tokens gives the gradient of its hidden states and drops its logits.
    """
    leaf = hidden.detach().requires_grad_()
    at_once = head_tokens(hidden.device)
    for start in range(0, len(leaf), at_once):
        tokens = slice(start, min(start + at_once, len(leaf)))
        with torch.enable_grad():
            logits = logits_of(model, leaf[tokens])
        with torch.no_grad():
            found = slope(tokens, logits.detach().float())
        logits.backward(found.to(logits.dtype))
    assert leaf.grad is not None
    return leaf.grad


def head_tokens(device: torch.device) -> int:
    """How many tokens' logits are made at a time."""
    return HEAD_TOKENS if device.type == "cpu" else HEAD_TOKENS_OF_GPU


def capped(model: Any, logits: Tensor) -> Tensor:
    """What the model does to logits after the head; each by itself, so that some of a vocabulary can be computed."""
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@torch.no_grad()
def check_head(model: Any) -> None:
    """InputError where the model does more to its logits than `logits_of` knows."""
    ids = torch.arange(4, device=model.device).unsqueeze(0) % model.config.get_text_config().vocab_size
    ours, theirs = logits_of(model, hidden_states(model, ids)), model(input_ids=ids, use_cache=False).logits
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise InputError(f"{type(model).__name__} changes its logits after the head; bitfleet cannot train it")


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies in it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def in_compute_dtype(model: Any) -> Any:
    """The model itself where it is in that already, else a copy."""
    dtype = compute_dtype(model.device)
    return model if dtype == model.dtype else copy.deepcopy(model).to(dtype)
