"""Tiny real models and a small implementation of what an exporter reads of a supernet: round-to-nearest codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from supernet.model import spec_of_model
from supernet.rotary import Rotary, rotaries_of
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec

COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
}
UNTIED = {"tie_word_embeddings": False}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": None, **UNTIED},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "gemma": {"model_type": "gemma", "head_dim": 32},
    "gemma2": {"model_type": "gemma2", "head_dim": 32, "sliding_window": 100, "query_pre_attn_scalar": 24},
    "gemma3": {
        "model_type": "gemma3_text", "head_dim": 32, "sliding_window": 100,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi": {
        "model_type": "phi", "num_attention_heads": 2, "num_key_value_heads": 2, "partial_rotary_factor": 0.5, **UNTIED
    },
    "phi3": {"model_type": "phi3", **UNTIED},
    "granite": {"model_type": "granite", **MULTIPLIERS},
    "nemotron": {"model_type": "nemotron", "num_attention_heads": 2, "partial_rotary_factor": 0.5, **UNTIED},
    "olmo": {"model_type": "olmo"},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0]},
    "ernie": {"model_type": "ernie4_5", "head_dim": 32},
    "hunyuan": {"model_type": "hunyuan_v1_dense", "head_dim": 32},
}  # fmt: skip


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, "rope_type": kind, **settings}}


def long_rope(values: int, **more: Any) -> dict[str, Any]:
    factors = {"short_factor": [1.2] * (values // 2), "long_factor": [4.0] * (values // 2)}
    return rope("longrope", original_max_position_embeddings=256, **factors, **more)


WINDOW = {"use_sliding_window": True, "sliding_window": 100, "layer_types": ["sliding_attention", "full_attention"]}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "llama with biases, heads of 32": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32, **UNTIED}),
    "llama without groups, linear": ("llama", {"num_key_value_heads": 4, **rope("linear", factor=4.0)}),
    "llama, dynamic": ("llama", rope("dynamic", factor=4.0)),
    "llama, yarn": ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "llama, llama3": ("llama", rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                    original_max_position_embeddings=128)),
    "mistral with a window": ("mistral", {"sliding_window": 100}),
    "qwen2 with windows by depth": ("qwen2", {"use_sliding_window": True, "sliding_window": 100,
                                              "max_window_layers": 1}),
    "qwen2, yarn": ("qwen2", rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "qwen3 with a window by layer": ("qwen3", WINDOW),
    "gemma3, linear": ("gemma3", {"rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "phi3 with a window": ("phi3", {"sliding_window": 100}),
    "phi3, longrope": ("phi3", {"original_max_position_embeddings": 256, **long_rope(16)}),
    "phi-4-mini": ("phi3", {"original_max_position_embeddings": 256, "num_attention_heads": 2,
                            "tie_word_embeddings": True, **long_rope(16, partial_rotary_factor=0.5)}),
    "granite with biases": ("granite", {"attention_bias": True, "mlp_bias": True, **UNTIED}),
    "smollm3 with a window": ("smollm3", WINDOW),
    "hunyuan, alpha": ("hunyuan", rope("dynamic", alpha=50.0, factor=1.0)),
}  # fmt: skip


@dataclass(frozen=True)
class Folded:
    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[Any]
    sides: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def dequantized(self) -> NDArray[np.float32]:
        rows, columns = self.codes.shape
        groups = self.scale.shape[1]
        centred = self.codes.reshape(rows, groups, -1).astype(np.float32) - self.zero[..., None].astype(np.float32)
        return (centred * self.scale[..., None]).reshape(rows, columns)


def round_to_nearest(weight: NDArray[np.float32], choice: Choice) -> Folded:
    if choice.format.block > 1:
        return _in_blocks(weight, choice)
    rows, columns = weight.shape
    top = 2**choice.bits - 1
    grouped = weight.reshape(rows, columns // choice.group_size, choice.group_size)
    if choice.format.symmetric:
        return _symmetric(grouped, choice)
    low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
    scale = np.maximum((high - low) / top, 1e-8).astype(np.float32)
    zero = np.clip(np.round(-low / scale), 0, top)
    codes = np.clip(np.round(grouped / scale[..., None]) + zero[..., None], 0, top)
    return Folded(codes.astype(np.uint8).reshape(rows, columns), scale, zero.astype(np.uint8))


def _in_blocks(weight: NDArray[np.float32], choice: Choice) -> Folded:
    """By the grid itself: its numbers are no matter of a few lines."""
    from supernet.grids import GRIDS

    found = GRIDS[choice.grid].nearest(torch.from_numpy(weight.copy()), choice)
    sides = {name: part.numpy() for name, part in found.parts.items() if name != "codes"}
    return Folded(found.grid.codes(found).numpy(), found.scale.numpy(), found.zero.numpy(), sides)


def _symmetric(grouped: NDArray[np.float32], choice: Choice) -> Folded:
    """The largest weight of a group takes its last code, so that scales have either sign."""
    half = 2 ** (choice.bits - 1)
    extreme = np.take_along_axis(grouped, np.abs(grouped).argmax(-1, keepdims=True), -1)[..., 0]
    scale = np.where(extreme == 0, 1e-8, -extreme / half).astype(np.float32)
    codes = np.clip(np.round(grouped / scale[..., None]) + half, 0, 2 * half - 1)
    zero = np.full(scale.shape, half, np.uint8)
    return Folded(codes.astype(np.uint8).reshape(len(grouped), -1), scale, zero)


class RoundedModel:
    """What a runtime's exporter reads of a supernet, over one Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.path = folder
        self.model_dir = folder
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.spec = spec_of_model(self.model, folder.name)
        self.trusted = False
        self.fingerprint = "rounded-" + folder.name
        self.weights = {n: p.detach().numpy() for n, p in self.model.named_parameters()}

    def check_hashes(self) -> None:
        """There is nothing on disk that could be damaged."""

    def evidence(self) -> dict[str, Any]:
        """What the full model says of its own text, made once."""
        from safetensors.numpy import load_file
        from transformers import AutoTokenizer

        from supernet.evidence import PROOF, write_evidence

        if not (self.path / PROOF).exists():
            held_out = torch.randint(3, 259, (4, 64), generator=torch.Generator().manual_seed(0))
            write_evidence(self.path / PROOF, self.model, AutoTokenizer.from_pretrained(self.path), held_out, self.spec)
        return dict(load_file(self.path / PROOF))

    def rotaries(self) -> dict[str, Rotary]:
        return rotaries_of(self.model.config)

    def subnet_model(self, subnet: Subnet) -> Any:
        return self.dequantized(subnet)

    def folded(self, linear: str, choice: Choice) -> Folded:
        return round_to_nearest(self.weights[linear + ".weight"], choice)

    def float_tensors(self) -> dict[str, torch.Tensor]:
        quantized = {linear.name + ".weight" for unit in self.spec.units for linear in unit.linears}
        return {n: p.detach() for n, p in self.model.named_parameters() if n not in quantized}

    def dequantized(self, subnet: Subnet) -> Any:
        """The plain model whose weights are the subnet's."""
        import copy

        model = copy.deepcopy(self.model)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for unit in self.spec.units:
                for linear in unit.linears:
                    weight = self.folded(linear.name, subnet[unit.name]).dequantized()
                    parameters[linear.name + ".weight"].copy_(torch.from_numpy(weight))
        return model


def save_tiny(family: str, folder: Path, attention: float = 4.0, embedding: float = 1.0, **overrides: Any) -> Path:
    """A random model of `family` as a Hugging Face folder with a small real tokenizer.

    `attention` and `embedding` are what its weights are multiplied by, the more the more attention matters.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    options = {**COMMON, **FAMILIES[family], **overrides}
    torch.manual_seed(0)
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases that are not the identity, so that losing one shows
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                table = "embed" in name or "lm_head" in name
                parameter.mul_(embedding if table else attention if "attn" in name else 4)
    model.save_pretrained(folder)
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{c: i + 3 for i, c in enumerate(sorted(letters))}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    fast.save_pretrained(folder)
    return folder


def mixed(spec: ModelSpec, bits: Mapping[int, int] | tuple[int, ...] = (2, 4, 8), group_size: int = 32) -> Subnet:
    """A subnet that cycles through `bits` over the linears, with the tables at 8 and then 4 bits."""
    cycle = list(bits)
    tables = iter((8, 4))
    return Subnet.of(
        {
            unit.name: Choice(next(tables) if unit.is_table else cycle[i % len(cycle)], group_size)
            for i, unit in enumerate(spec.units)
        }
    )
