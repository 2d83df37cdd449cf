"""What packages that are Hugging Face folders promise: exact bytes, the same bytes, nothing that runs code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from planner.request import Workload
from planner.runtimes.base import DECODE, ESTIMATE, PREFILL, Runtime, weakest
from planner.runtimes.mlx.runtime import Mlx
from planner.runtimes.vllm.runtime import Vllm
from profiles.catalog import load
from records.errors import InputError
from supernet.space import Choice
from tests.planner.folder_fixtures import GridModel, cycled, listed
from tests.planner.runtime_fixtures import save_tiny

WORKLOAD = Workload(128, 1, 32)
MIXES = {"vllm": ("sym2g64", "sym3g64", "int4g32", "sym8g32"), "mlx": ("sym2g64", "int3g64", "int4g32", "sym8g32")}
DEVICES = {"vllm": "rtx-4090-24gb", "mlx": "macbook-air-m3-16gb"}


@pytest.fixture(scope="module", params=[Vllm, Mlx], ids=lambda runtime: runtime.name)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return request.param()  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=["qwen2", "mistral"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GridModel:
    return GridModel(save_tiny(request.param, tmp_path_factory.mktemp("files") / "model"))


@pytest.fixture(scope="module")
def package(runtime: Runtime, files: GridModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(runtime.name)
    runtime.packages.write(files, cycled(files.spec, MIXES[runtime.name]), WORKLOAD, None, folder)
    return folder


def test_written_bytes_are_the_predicted_ones(runtime: Runtime, files: GridModel, package: Path) -> None:
    subnet = cycled(files.spec, MIXES[runtime.name])
    holding = runtime.holding(files.spec)
    assert holding.refusal() is None
    assert all(holding.unit_refusal(unit, subnet[unit.name]) is None for unit in files.spec.units)
    predicted = sum(holding.unit_bytes(unit, subnet[unit.name]) for unit in files.spec.units)
    predicted += holding.rest_bytes(WORKLOAD, files.model_dir)
    assert predicted == sum((package / name).stat().st_size for name in runtime.packages.weight_files)


def test_the_same_subnet_gives_the_same_bytes(
    runtime: Runtime, files: GridModel, package: Path, tmp_path: Path
) -> None:
    runtime.packages.write(files, cycled(files.spec, MIXES[runtime.name]), WORKLOAD, 7, tmp_path)
    assert listed(tmp_path).keys() == listed(package).keys()
    for name in listed(package):
        assert (tmp_path / name).read_bytes() == (package / name).read_bytes(), name


def test_pieces_are_the_tensors(runtime: Runtime, package: Path) -> None:
    found = runtime.packages.pieces(package, listed(package))
    assert {name: sum(piece.bytes for piece in pieces) for name, pieces in found.items()} == listed(package)
    tensors = found["model.safetensors"]
    assert [piece.offset for piece in tensors] == list(accumulate([0, *(p.bytes for p in tensors)]))[:-1]
    index = json.loads((package / "model.safetensors.index.json").read_text())["weight_map"]
    assert {piece.name for piece in tensors[1:]} == index.keys() and {*index.values()} == {"model.safetensors"}


def test_the_tokenizer_and_the_stop_tokens_are_the_model_s(runtime: Runtime, files: GridModel, package: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(files.model_dir)
    messages = [{"role": "user", "content": "hi"}]
    ids, chats, stops = runtime.packages.spoken(package, ["a b", "é\n"], [messages])
    assert ids == [tokenizer.encode(text) for text in ("a b", "é\n")]
    assert chats == [tokenizer.apply_chat_template(messages, tokenize=False)] and stops == [2]


def test_nothing_of_it_is_run_here(runtime: Runtime) -> None:
    assert runtime.engine() is None and runtime.versions() == {}


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("sym4g48", "48"), ("sym4g16", "16"), ("k4g64", "k"), ("sym4g64k64", "prunes"), ("sym1g64", "got 1")],
)
def test_a_choice_that_does_not_fit_is_refused(runtime: Runtime, files: GridModel, choice: str, reason: str) -> None:
    down = next(unit for unit in files.spec.units if unit.role == "down")
    refusal = runtime.holding(files.spec).unit_refusal(down, Choice.parse(choice))
    assert refusal is not None and reason in refusal


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "OddForCausalLM"}, "OddForCausalLM"),
        ({"features": ("clip_qkv",)}, "clip_qkv"),
        ({"ropes": ("rope of tomorrow",)}, "rope of tomorrow"),
        ({"windows": (0, None)}, "window of 0"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    runtime: Runtime, files: GridModel, changes: dict[str, Any], reason: str
) -> None:
    refusal = runtime.holding(replace(files.spec, **changes)).refusal()
    assert refusal is not None and reason in refusal


def test_estimates_say_so_and_add_up_over_units(runtime: Runtime, files: GridModel) -> None:
    device, spec = load(DEVICES[runtime.name]), files.spec
    pricing, holding = runtime.pricing(spec, WORKLOAD, device), runtime.holding(spec)
    first, last = cycled(spec, ["sym2g64"]), cycled(spec, ["sym8g32"])
    for items in (
        pricing.memory,
        lambda subnet: pricing.latency(subnet, PREFILL),
        lambda subnet: pricing.latency(subnet, DECODE),
    ):
        assert weakest(item.basis for item in items(first)) == ESTIMATE
        for unit in spec.units:
            changed = first.replace(unit.name, last[unit.name])
            rest = [[item for item in items(subnet) if item.unit != unit.name] for subnet in (first, changed)]
            assert rest[0] == rest[1]
    memory = [sum(item.bytes for item in pricing.memory(subnet)) for subnet in (first, last)]
    disk = [sum(holding.unit_bytes(unit, subnet[unit.name]) for unit in spec.units) for subnet in (first, last)]
    assert memory[1] - memory[0] == disk[1] - disk[0] > 0


# --- a stranger's folder ------------------------------------------------------------------------------------------


def config(change: Callable[[dict[str, Any]], Any], name: str = "config.json") -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return damage


def quantized(value: dict[str, Any]) -> dict[str, Any]:
    """Where a config says of a layer how it is packed."""
    if "quantization" in value:
        return value["quantization"]["model.layers.0.self_attn.o_proj"]  # type: ignore[no-any-return]
    return next(iter(value["quantization_config"]["config_groups"].values()))["weights"]  # type: ignore[no-any-return]


def again(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text('{"vocab_size": 1,' + text[1:])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code": (lambda folder: (folder / "modeling.py").write_text(""), "modeling.py"),
    "a pickle": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b""), "pytorch_model.bin"),
    "more weights": (lambda f: shutil.copy(f / "model.safetensors", f / "model-2.safetensors"), "model-2"),
    "no index": (lambda folder: (folder / "model.safetensors.index.json").unlink(), "index"),
    "auto_map": (config(lambda value: value.update(auto_map={"AutoModel": "a.B"})), "auto_map"),
    "auto_map of a tokenizer": (config(lambda v: v.update(x=[{"auto_map": {}}]), "tokenizer_config.json"), "auto_map"),
    "model_file": (config(lambda value: value.update(model_file="a.txt")), "model_file"),
    "kernels": (config(lambda value: value.update(_attn_implementation="a/b")), "_attn_implementation"),
    "depth": (config(lambda value: value.update(x=[[[[[[[[[1]]]]]]]]])), "deep"),
    "a key twice": (again, "twice"),
    "no number": (config(lambda value: value.update(x=float("nan"))), "finite"),
    "an architecture": (config(lambda value: value.update(architectures=["OddForCausalLM"])), "OddForCausalLM"),
    "a vocabulary": (config(lambda value: value.update(vocab_size=10**7)), "vocabulary"),
    "layers": (config(lambda value: value.update(num_hidden_layers=5000)), "5000 layers"),
    "channels": (config(lambda value: value.update(intermediate_size=10**6)), "1000000"),
    "a context": (config(lambda value: value.update(max_position_embeddings=64)), "context of 128"),
    "bits": (config(lambda value: quantized(value).update(bits=5, num_bits=5)), "exporter"),
    "nothing packed": (config(lambda v: [v.pop(k, None) for k in ("quantization", "quantization_config")]), "packed"),
    "another file": (
        config(lambda v: v["weight_map"].update({"model.norm.weight": "../a"}), "model.safetensors.index.json"),
        "name every",
    ),
    "cut": (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678{}"), "header"),
}  # fmt: skip


def test_its_own_packages_pass_the_check_with_what_stands_beside_them(
    runtime: Runtime, package: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(package, folder)
    (folder / "probes.json").write_text("{}")
    shutil.copy(folder / "model.safetensors", folder / "proof.safetensors")
    runtime.packages.check(folder, listed(folder), WORKLOAD)


@pytest.mark.parametrize("what", DAMAGES)
def test_what_no_exporter_writes_is_refused(
    runtime: Runtime, files: GridModel, package: Path, tmp_path: Path, what: str
) -> None:
    damage, reason = DAMAGES[what]
    folder = tmp_path / "package"
    shutil.copytree(package, folder)
    damage(folder)
    with pytest.raises(InputError, match=reason) as caught:
        runtime.packages.check(folder, listed(folder), WORKLOAD)
    assert "\n" not in str(caught.value)
