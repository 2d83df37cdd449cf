"""The model that the builder is shown in place of the real one, and what its config says that the builder is not told.

Same layers, same heads, same names; few tokens, narrow blocks, plain rotary embeddings, no windows. So it is small
whatever the model is: 136 MB for the 13.5 GB of Llama-2-7B.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supernet import facts
from supernet.rotary import Rotary
from supernet.spec import ModelSpec

# Of the stand-in. Tokens are an odd number: the builder takes any linear with as many outputs for the head. Configs ask
# for a hidden size that its heads divide, labels for two values.
TOKENS, CHANNELS, POSITIONS, HIDDEN_A_HEAD = 33, 16, 64, 2
VECTOR_STEP = 4.0  # vector number n is filled with n * VECTOR_STEP, so that what the graph adds to it can be told
EPSILONS = {"phi": "layer_norm_eps", "nemotron": "norm_eps"}  # all others: rms_norm_eps
OLMO_EPSILON = 1e-5


@dataclass(frozen=True)
class Standin:
    """How the labels are read: linears and vectors in the order of their numbers, sizes as (stand-in, model)."""

    linears: list[str]
    vectors: list[str]
    sizes: dict[str, tuple[int, int]]  # rows of a linear, values of a vector
    inputs: dict[str, int]  # in_features of a linear of the model
    hidden: tuple[int, int]  # the hidden size, likewise


@dataclass(frozen=True)
class Facts:
    """What the graph is given from the model's own code: by layer, the window and the rotary table, and what each table
    is made of; the factor of the embedding, None where the builder has it right; whether norms take the mean away where
    the builder's do not (OLMo)."""

    windows: tuple[int | None, ...]
    tables: tuple[str | None, ...]
    rotaries: Mapping[str, Rotary]
    embedding_scale: float | None
    centred_norms: bool = False


def write(spec: ModelSpec, config: Any, folder: Path) -> Standin:
    """Write the stand-in as a Hugging Face folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    folder.mkdir()
    plain = plain_config(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(plain)
        true = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in true.named_parameters()}
    linears = [linear.name for unit in spec.units for linear in unit.linears]
    vectors = [name for name in shapes if name.removesuffix(".weight") not in linears]
    tensors = {}
    for name, parameter in model.named_parameters():
        if name in vectors:
            tensors[name] = torch.full(parameter.shape, VECTOR_STEP * (1 + vectors.index(name)))
        else:
            tensors[name] = torch.zeros(parameter.shape)
            tensors[name][:, 0] = 1 + linears.index(name.removesuffix(".weight"))
            tensors[name][:, 1] = torch.arange(parameter.shape[0])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    plain.architectures = [spec.architecture]
    plain.save_pretrained(folder)
    _write_tokenizer(folder)
    small = {name: parameter.shape[0] for name, parameter in model.named_parameters()}
    sizes = {
        name.removesuffix(".weight") if name not in vectors else name: (small[name], shapes[name][0]) for name in shapes
    }
    inputs = {name: shapes[name + ".weight"][1] for name in linears}
    return Standin(linears, vectors, sizes, inputs, (plain.hidden_size, config.hidden_size))


def plain_config(config: Any) -> Any:
    """A copy of the config as the stand-in has it."""
    from transformers import AutoConfig

    settings = config.to_dict()
    kind = settings.pop("model_type")
    for key in ("auto_map", "quantization_config", "rope_scaling", "rope_theta", "_name_or_path"):
        settings.pop(key, None)
    layers = settings["num_hidden_layers"]
    epsilon = OLMO_EPSILON if kind == "olmo" else settings.get(EPSILONS.get(kind, "rms_norm_eps"))
    settings |= {
        "vocab_size": TOKENS, "hidden_size": HIDDEN_A_HEAD * settings["num_attention_heads"],
        "head_dim": facts.head_dim(config), "intermediate_size": CHANNELS, "max_position_embeddings": POSITIONS,
        "original_max_position_embeddings": POSITIONS, "sliding_window": None, "use_sliding_window": False,
        "hidden_act": facts.activation(config), "hidden_activation": facts.activation(config), "rms_norm_eps": epsilon,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "dtype": "float32",
        "rope_parameters": plain_rope(config),
    }  # fmt: skip
    if settings.get("layer_types"):
        settings["layer_types"] = [facts.FULL] * layers
    if settings.get("no_rope_layers"):
        settings["no_rope_layers"] = [1] * layers
    return AutoConfig.for_model(kind, **settings)


def plain_rope(config: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    used = facts.ropes(config)
    part = next(iter(used.values())).get("partial_rotary_factor") if used else None
    if part is not None:
        plain["partial_rotary_factor"] = part
    if config.model_type == "gemma3_text":
        plain["rope_local_base_freq"] = plain["rope_theta"]  # the builder asks for transformers 4's name
    return plain


def kind_of(built: Path) -> str:
    """What onnxruntime-genai calls the architecture, as its own builder wrote it.

    Of phi3 it computes a text anew at token 4097, to change from one rotary table to another; ours has one.
    """
    kind = str(json.loads((built / "genai_config.json").read_text())["model"]["type"])
    return "llama" if kind == "phi3" else kind


def facts_of(config: Any, rotaries: Mapping[str, Rotary]) -> Facts:
    """The model's windows, rotary embeddings and embedding factor, from its own modules in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    used, layers = facts.ropes(config), config.num_hidden_layers
    kinds = config.layer_types if facts.ONLY_ROPE not in used and used else [facts.ONLY_ROPE] * layers
    tables = tuple(kind if turns else None for kind, turns in zip(kinds, facts.rotates(config), strict=True))
    windows = facts.windows(config) or (None,) * layers
    scale = getattr(model.get_input_embeddings(), "scalar_embed_scale", None)
    return Facts(windows, tables, rotaries, None if scale is None else float(scale), config.model_type == "olmo")


def _write_tokenizer(folder: Path) -> None:
    """The builder reads a tokenizer; the package gets the model's own."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab={"<unk>": 0, "<s>": 1, "</s>": 2}, merges=[], unk_token="<unk>")).save(
        str(folder / "tokenizer.json")
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
