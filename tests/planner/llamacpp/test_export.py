"""A written file holds the subnet: read back by the reader of GGUF files it is the same model."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planner.runtimes.llamacpp import architectures, fresh, metadata, modelfile, safety, tensors
from planner.runtimes.llamacpp.export import in_pairs, write_model
from planner.runtimes.llamacpp.header import head
from planner.runtimes.llamacpp.serving import LIBRARY
from records.errors import InputError
from supernet.sources.gguf import GGUFSource
from supernet.spec import ModelSpec
from tests.planner.llamacpp.models import EVERY, EXACT, READ, WIDE, WRITTEN, GridModel, K, made, mixed
from tests.planner.runtime_fixtures import save_tiny

CONTEXT = 256


@pytest.mark.parametrize("variant", WRITTEN)
def test_the_file_is_the_subnet_and_has_the_predicted_bytes(variant: str, tmp_path: Path) -> None:
    files = made(variant, tmp_path / "model")
    assert architectures.refusal(files.spec) is None and tensors.refusal(files.spec) is None
    subnet = mixed(files.spec, *EXACT)
    (tmp_path / "package").mkdir()
    write_model(files, subnet, CONTEXT, 1, tmp_path / "package")
    predicted = sum(tensors.unit_bytes(unit, subnet[unit.name]) for unit in files.spec.units)
    predicted += tensors.float_bytes(files.spec) + metadata.head_bytes(files.spec, files.model_dir)
    assert (tmp_path / "package" / "model.gguf").stat().st_size == predicted
    if variant in READ:
        assert_same_model(files.subnet_model(subnet), GGUFSource(tmp_path / "package" / "model.gguf"))


def test_bytes_are_counted_anew_when_a_file_of_the_model_changes(tmp_path: Path) -> None:
    files = made("llama", tmp_path / "model")
    before = metadata.head_bytes(files.spec, files.model_dir)
    assert metadata.head_bytes(files.spec, files.model_dir) == before
    template = "{% for message in messages %}{{ message.content }}{% endfor %}" * 99
    (files.model_dir / "chat_template.jinja").write_text(template)
    after = metadata.head_bytes(files.spec, files.model_dir)
    assert after == len(head(metadata.entries(files.spec, files.model_dir), stored(files.spec))) != before


def stored(spec: ModelSpec) -> list[Any]:
    return [tensor.stored(None) for tensor in tensors.tensors_of(spec)]


def assert_same_model(wanted: torch.nn.Module, source: GGUFSource) -> None:
    """Weight by weight, and in what it says: what a config leaves out shows there."""
    config = source.config(False)
    found, _ = source.weights(config, False, torch.float32)
    theirs = dict(found.named_parameters())
    for name, parameter in wanted.named_parameters():
        if "norm" in name:  # Gemma's are stored as 1 + w in float32
            torch.testing.assert_close(theirs[name], parameter, rtol=0, atol=1e-7)
        else:
            assert torch.equal(theirs[name], parameter), name
    ids = torch.randint(3, 259, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(ids).logits, wanted(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["llama", "qwen2"])
def test_super_blocks_are_the_subnet_in_the_file_and_in_llama_cpp(variant: str, tmp_path: Path) -> None:
    """Read by another program's reader and run by llama.cpp, which rounds what products read to int8."""
    files = made(variant, tmp_path / "model", **WIDE)
    subnet, package = mixed(files.spec, *K), tmp_path / "package"
    package.mkdir()
    write_model(files, subnet, CONTEXT, 1, package)
    wanted, source = files.subnet_model(subnet), GGUFSource(package / "model.gguf")
    found, _ = source.weights(source.config(False), False, torch.float32)
    theirs = dict(found.named_parameters())
    for name, parameter in wanted.named_parameters():
        torch.testing.assert_close(theirs[name], parameter, rtol=0, atol=1e-6 * parameter.abs().max().item())
    safety.check(package, {path.name: path.stat().st_size for path in package.iterdir()}, CONTEXT)
    if find_spec(LIBRARY) is None:
        return
    windows = torch.randint(3, 259, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = wanted(windows).logits.log_softmax(-1)
    said = torch.from_numpy(fresh.logits(package, windows.numpy())).log_softmax(-1)
    kl = torch.nn.functional.kl_div(said, ours, reduction="sum", log_target=True) / windows.numel()
    assert ours.exp().max(-1).values.mean() > 0.05 and kl < 0.004


def test_the_same_subnet_gives_the_same_bytes(tmp_path: Path) -> None:
    files = made("qwen2", tmp_path / "model")
    subnet = mixed(files.spec, *EVERY)
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_model(files, subnet, CONTEXT, 1, tmp_path / name)
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert found[0] == found[1] and {"model.gguf", "Modelfile", "tokenizer.json"} <= found[0].keys()


def test_the_modelfile_says_what_the_file_does_not(tmp_path: Path) -> None:
    files = made("llama", tmp_path / "model")
    (tmp_path / "package").mkdir()
    write_model(files, mixed(files.spec, "sym8g32"), CONTEXT, 1, tmp_path / "package")
    lines = (tmp_path / "package" / "Modelfile").read_text().splitlines()
    assert lines == ["FROM ./model.gguf", "PARAMETER num_ctx 256", "PARAMETER temperature 0", 'PARAMETER stop "</s>"']


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("<|im_end|>", '"<|im_end|>"'),
        ("<｜end▁of▁sentence｜>", '"<｜end▁of▁sentence｜>"'),  # Ollama undoes no escapes
        ("a\\n", '"a\\n"'),
        ('say "no" now', '"""say "no" now"""'),
        ('"quoted"', None),
        ("two\nlines", None),
        ("", None),
    ],
)
def test_a_stop_of_ollama_is_written_as_its_parser_reads_it(text: str, line: str | None) -> None:
    assert modelfile.quoted(text) == line
    if line is not None:
        assert modelfile.unquoted(line) == text
        assert not any(modelfile.unquoted(other) for other in (line + " ", line[:-1], text + "x", f"'{text}'"))


def test_neighbours_in_the_file_are_halves_in_the_model() -> None:
    rows = np.arange(12).reshape(12, 1)  # two heads of six
    assert in_pairs(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("mistral", {"sliding_window": 100}, "no sliding window"),
        ("phi3", {"sliding_window": 100}, "no sliding window"),
        ("gemma3", {}, "each 6th"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 4.0}}, "rope type dynamic"),
        ("qwen3", {"attention_bias": True}, "no bias"),
        ("olmo", {}, "OlmoForCausalLM"),
    ],
)
def test_what_llama_cpp_would_leave_out_is_refused(
    family: str, changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    spec = GridModel(save_tiny(family, tmp_path / "model", **changes)).spec  # type: ignore[arg-type]
    refusal = architectures.refusal(spec)
    assert refusal is not None and reason in refusal


def test_float_tensors_that_no_file_has_are_refused(tmp_path: Path) -> None:
    spec = made("llama", tmp_path / "model").spec
    more = tensors.refusal(replace(spec, float_parameters=spec.float_parameters + 1))
    assert more is not None and str(spec.float_parameters) in more


@pytest.mark.parametrize(
    ("variant", "key", "value"),
    [
        ("gemma2", "query_pre_attn_scalar", 24),
        ("gemma3", "attn_logit_softcapping", 50.0),
        ("llama", "rms_norm_eps", None),
        ("granite", "residual_multiplier", None),
        ("smollm3", "no_rope_layers", [1, 0, 1, 0, 1]),
        ("llama, yarn", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 16}),
    ],
)
def test_settings_without_a_key_are_refused(variant: str, key: str, value: object, tmp_path: Path) -> None:
    import json

    files = made(variant, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match="beta_fast" if variant == "llama, yarn" else key):
        metadata.entries(files.spec, tmp_path / "model")
