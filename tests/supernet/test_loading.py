"""What is loaded is the model: every tensor of a folder is read, known to be harmless, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from records.errors import InputError
from supernet.loading import describe, load_model
from supernet.model import is_tied, spec_of_model
from tests.supernet.folders import WEIGHTS, config, refused, save, sharded, tensors, with_code
from tests.tiny import COMMON, FAMILIES, save_tiny, tiny_model

INV_FREQ = 10000.0 ** (-torch.arange(0, 16, 2) / 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_loaded_whole_and_described_before(tmp_path: Path, family: str) -> None:
    made = tiny_model(family)
    save(tmp_path, made)
    loaded = load_model(str(tmp_path))
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.model.parameters())
    ids = torch.arange(24).view(2, 12)
    assert torch.equal(loaded.model(ids).logits, made(ids).logits)
    assert loaded.tokenizer.decode(loaded.tokenizer("fox, dog")["input_ids"]) == "fox, dog"
    held = load_file(tmp_path / WEIGHTS)
    assert loaded.account.tensors == dict.fromkeys(held, "read")
    assert loaded.account.line == f"read {len(held)} tensors of 1 file"
    assert describe(str(tmp_path)) == (describe(str(tmp_path))[0], spec_of_model(loaded.model, tmp_path.name))


def test_a_model_in_half_the_memory(tmp_path: Path) -> None:
    loaded = load_model(str(save_tiny(tmp_path)), dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


# --- sets of tensors that are not the model's


def without(*parts: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors(folder, lambda held: [held.pop(n) for n in list(held) if any(part in n for part in parts)])

    return change


def untied_without_head(folder: Path) -> None:
    save(folder, tiny_model("mistral"))
    tensors(folder, lambda held: held.pop("lm_head.weight"))


def base_model(folder: Path) -> None:
    save(folder, tiny_model("mistral").model)


def classifier(folder: Path) -> None:
    arguments = {**COMMON, "tie_word_embeddings": False}
    save(folder, transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**arguments)))


def added(**more: torch.Tensor) -> Callable[[Path], None]:
    return lambda folder: tensors(folder, lambda held: held.update(more))


def biases(folder: Path) -> None:
    save(folder, tiny_model(attention_bias=True, mlp_bias=True))
    config(folder, attention_bias=False, mlp_bias=False)


def fp8(folder: Path) -> None:
    name = "model.layers.0.mlp.gate_proj.weight"
    tensors(folder, lambda held: held.update({name: held[name].to(torch.float8_e4m3fn)}))


def fp8_with_scales(folder: Path) -> None:
    fp8(folder)
    added(**{"model.layers.0.mlp.gate_proj.weight_scale_inv": torch.ones(1)})(folder)


def filled(value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors(folder, lambda held: held["model.layers.1.mlp.up_proj.weight"][0].fill_(value))

    return change


def two_files(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / WEIGHTS).read_bytes())

    return change


def shards_and_single(folder: Path) -> None:
    single = (folder / WEIGHTS).read_bytes()
    sharded(folder)
    (folder / WEIGHTS).write_bytes(single)


def shard_missing(folder: Path) -> None:
    sharded(folder)[1].unlink()


def shard_without_index(folder: Path) -> None:
    save_file({"lm_head.weight": torch.ones(2)}, folder / "model-00002-of-00002.safetensors")


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")


def lora_alone(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")


def moved_index(folder: Path) -> None:
    sharded(folder)
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": dict.fromkeys(table, "../elsewhere.safetensors")}))


BROKEN: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "untied without head": (untied_without_head, ("1 are missing", "lm_head.weight")),
    "a layer missing": (
        without(".layers.1."),
        ("9 are missing", "model.layers.1.input_layernorm", "and 6 more"),
    ),
    "a tensor missing": (without("layers.1.mlp.down_proj"), ("1 are missing", "model.layers.1.mlp.down_proj.weight")),
    "a base model": (base_model, ("1 are missing", "lm_head.weight")),
    "a classifier": (classifier, ("1 are missing: lm_head.weight", "score.weight")),
    "more layers in the config": (lambda f: config(f, num_hidden_layers=4), ("18 are missing", "model.layers.2.")),
    "fewer layers in the config": (lambda f: config(f, num_hidden_layers=1), ("9 unexpected", "model.layers.1.")),
    "biases": (biases, ("14 unexpected", "mlp.down_proj.bias")),
    "an adapter inside": (added(**{"model.layers.0.lora_A.weight": torch.ones(2)}), ("1 unexpected", "lora_A")),
    "other frequencies": (added(**{"model.layers.0.self_attn.rotary_emb.inv_freq": INV_FREQ / 8}), ("inv_freq",)),
    "fp8": (fp8, ("pre-quantized", "F8_E4M3", "gate_proj")),
    "fp8 with scales": (fp8_with_scales, ("pre-quantized", "scale", "gate_proj.weight_scale_inv")),
    "packed codes": (added(**{"model.layers.0.mlp.gate_proj.qweight": torch.ones(2)}), ("pre-quantized", "qweight")),
    "another shape": (lambda f: config(f, intermediate_size=96), ("6 tensors of another shape", "mlp.down_proj")),
    "nan": (filled(float("nan")), ("model.layers.1.mlp.up_proj.weight", "NaN or infinite")),
    "infinite": (filled(float("-inf")), ("model.layers.1.mlp.up_proj.weight", "NaN or infinite")),
    "cut short": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-5]), ("damaged", WEIGHTS)),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), ("has no weights",)),
    "pickles alone": (pickled, ("pickled weights alone", "pytorch_model.bin", "never loaded")),
    "shards and a single file": (shards_and_single, ("two sets of weights", WEIGHTS, "model-00001")),
    "a shard missing": (shard_missing, ("lacks 1 of its", "model-00002")),
    "a shard too many": (shard_without_index, ("model-00002-of-00002.safetensors", "no complete set")),
    "an index that leaves the folder": (moved_index, ("elsewhere.safetensors", "no safetensors file of this folder")),
    "a lora beside": (two_files("adapter_model.safetensors"), ("adapter", "merge it")),
    "a lora alone": (lora_alone, ("adapter", "merge it")),
    "an adapter's config": (lambda f: (f / "adapter_config.json").write_text("{}"), ("adapter", "LoRA")),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_weights_that_are_not_the_model_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    change, words = BROKEN[kind]
    change(save_tiny(tmp_path))
    message = refused(tmp_path)
    assert [word for word in words if word not in message] == [], message


# --- what is read all the same, and said


def test_tensors_that_change_nothing_are_left_aside_and_said(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    plain = load_model(str(tmp_path)).model
    added(**{f"model.layers.{i}.self_attn.rotary_emb.inv_freq": INV_FREQ.half() for i in range(2)})(tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.account.line.endswith("tensors of 1 file; 2 left aside: rotary_emb.inv_freq")
    assert (
        loaded.account.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] == "left aside: computed from the config"
    )
    ids = torch.arange(8).view(1, 8)
    assert torch.equal(loaded.model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("name", ["consolidated.safetensors", "model.fp16.safetensors"])
def test_one_set_of_two_is_read_and_the_other_said(tmp_path: Path, name: str) -> None:
    two_files(name)(save_tiny(tmp_path))
    account = load_model(str(tmp_path)).account
    assert account.files == {WEIGHTS: "read", name: "left aside: another set of weights"}
    assert name in account.line


def test_a_stale_index_is_said(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}))
    assert load_model(str(tmp_path)).account.files[index.name] == "left aside: the files it names are not there"


def test_a_tied_base_model_is_a_whole_model(tmp_path: Path) -> None:
    made = tiny_model()
    save(tmp_path, made.model)
    loaded = load_model(str(tmp_path))
    assert loaded.account.tensors["norm.weight"] == "read into model.norm.weight"
    ids = torch.arange(8).view(1, 8)
    assert torch.equal(loaded.model(ids).logits, made(ids).logits)


def test_shards_are_read_whole(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    shards = sharded(tmp_path)
    loaded = load_model(str(tmp_path))
    assert len(shards) > 2
    assert set(loaded.account.files) == {shard.name for shard in shards}
    ids = torch.arange(8).view(1, 8)
    assert torch.equal(loaded.model(ids).logits, tiny_model()(ids).logits)


@pytest.mark.parametrize("same", [True, False])
def test_a_head_beside_the_tied_flag_is_followed(tmp_path: Path, same: bool) -> None:
    made = tiny_model("mistral")  # untied
    if same:
        made.lm_head.weight.copy_(made.model.embed_tokens.weight)
    save(tmp_path, made)
    config(tmp_path, tie_word_embeddings=True)
    loaded = load_model(str(tmp_path))
    assert is_tied(loaded.model) is loaded.model.config.tie_word_embeddings is same
    assert loaded.account.tensors["lm_head.weight"] == ("tied to the embedding" if same else "read")
    ids = torch.arange(8).view(1, 8)
    assert torch.equal(loaded.model(ids).logits, made(ids).logits)


# --- where a model is looked for


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("./nowhere", "no such model folder: ./nowhere; give a Hugging Face folder"),
        ("./nowhere.gguf", "no such model file: ./nowhere.gguf; give the path of a .gguf file"),
        ("somebody/some-model", "neither a local path nor reachable on the hub; give the folder of a downloaded copy"),
        (__file__, "is a file, and no .gguf"),
    ],
)
def test_a_missing_model_is_one_clear_line(source: str, error: str) -> None:
    with pytest.raises(InputError) as raised:
        load_model(source)
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_model_of_the_hub_is_read_from_its_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--tiny"
    save_tiny(repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    loaded = load_model("somebody/tiny")
    assert loaded.account.files == {WEIGHTS: "read"}
    assert describe("somebody/tiny")[1].name == "somebody/tiny"


def test_a_folder_without_a_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a model folder needs a config.json"):
        load_model(str(tmp_path))


# --- code that comes with a model


def test_code_runs_and_is_kept_where_it_is_trusted(tmp_path: Path) -> None:
    loaded = load_model(str(with_code(tmp_path / "model")), trust_remote_code=True)
    assert loaded.runs_code
    loaded.save_description(tmp_path / "kept")
    kept = {file.name for file in (tmp_path / "kept").glob("*.py")}
    assert kept == {"configuration_my.py", "modeling_my.py", "parts_my.py"}
    again = transformers.AutoConfig.from_pretrained(tmp_path / "kept", trust_remote_code=True)
    model = transformers.AutoModelForCausalLM.from_config(again, trust_remote_code=True)
    assert type(model).__name__ == "MyForCausalLM"


def test_code_is_refused_where_it_is_not_trusted(tmp_path: Path) -> None:
    with_code(tmp_path)
    (tmp_path / "configuration_my.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(InputError, match="--trust-remote-code"):
        describe(str(tmp_path))


def test_code_of_a_model_that_transformers_knows_is_left_alone(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    (tmp_path / "model" / "modeling_my.py").write_text("raise SystemExit('it ran')")
    config(tmp_path / "model", auto_map={"AutoModelForCausalLM": "modeling_my.MyForCausalLM"})
    loaded = load_model(str(tmp_path / "model"))
    assert not loaded.runs_code
    loaded.save_description(tmp_path / "kept")
    assert not list((tmp_path / "kept").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "kept" / "config.json").read_text())
