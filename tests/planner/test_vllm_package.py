"""Packages for vLLM, read by what else reads them: compressed-tensors, and transformers through it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planner.request import Workload
from planner.runtimes.tensor_file import WEIGHTS
from planner.runtimes.vllm import holding, split
from planner.runtimes.vllm.layout import packed
from planner.runtimes.vllm.packages import VllmPackages
from planner.runtimes.vllm.runtime import Vllm
from profiles.catalog import load
from records.errors import InputError
from supernet.experts import unstacked
from supernet.space import Choice
from supernet.spec import EMBEDDING
from tests.planner.folder_fixtures import GridModel, cycled, listed, packaged_model, stored
from tests.planner.runtime_fixtures import MIXTURES, VARIANTS, save_tiny

MIX = ("sym2g64", "sym3g64", "sym4g32", "sym8g32")
AFFINE_MIX = ("int4g32", "int8g64", "sym3g64")
LIBRARY = "pip install bitfleet[vllm]"
LOADED = (
    "llama", "qwen2", "qwen3", "gemma", "phi3", "granite", "nemotron", "ernie", "llama with biases, heads of 32",
    "mistral with a window", "llama, llama3", "phi3, longrope", "smollm3", "hunyuan",
    "phi", "olmo", "gemma2", "gemma3",
)  # fmt: skip


def made(variant: str, folder: Path, choices: tuple[str, ...] = MIX, experts: str = "sym4g64") -> tuple[GridModel, Any]:
    """The model, and the subnet whose package is written to `folder`; a mixture's experts at a choice of their own."""
    family, options = {**VARIANTS, **MIXTURES}[variant]
    files = GridModel(save_tiny(family, folder.parent / "model", **options))
    subnet = cycled(files.spec, choices, head="sym8g64")
    for unit in files.spec.units:
        if unit.chosen is not None:
            subnet = subnet.replace(unit.name, Choice.parse(experts))
    folder.mkdir()
    VllmPackages().write(files, subnet, Workload(128, 1, 64), None, folder)
    return files, subnet


def scheme_of(choice: Choice) -> Any:
    quantization = pytest.importorskip("compressed_tensors.quantization", reason=LIBRARY)
    weights = quantization.QuantizationArgs(
        num_bits=choice.bits, symmetric=choice.grid == "sym", strategy="group", group_size=choice.group_size
    )
    return quantization.QuantizationScheme(targets=["Linear"], weights=weights, format="pack-quantized")


@pytest.mark.parametrize("grid", ["sym", "int"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_matrix_is_packed_as_the_library_packs_it(grid: str, bits: int, tmp_path: Path) -> None:
    library = pytest.importorskip("compressed_tensors.compressors", reason=LIBRARY)
    files = GridModel(save_tiny("llama", tmp_path))
    choice, name = Choice(bits, 32, grid), "model.layers.1.mlp.down_proj"
    folded = files.folded(name, choice)
    scale = torch.from_numpy(folded.scale.astype(np.float16)).float()
    weights = {
        "weight": torch.from_numpy(stored(folded)),
        "weight_scale": scale,
        "weight_zero_point": torch.from_numpy(folded.zero.astype(np.int16) - 2 ** (bits - 1)).to(torch.int8),
    }
    wanted = library.PackedQuantizationCompressor.compress(weights, scheme_of(choice))
    found = dict(packed(name, folded, choice))
    assert found.keys() == wanted.keys()
    for part, array in found.items():
        assert np.array_equal(array, wanted[part].numpy()), part
        assert part == "weight_scale" or array.dtype == wanted[part].numpy().dtype


@pytest.mark.parametrize("variant", LOADED)
def test_transformers_loads_exactly_the_subnet(variant: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason=LIBRARY)
    from transformers import AutoModelForCausalLM

    files, subnet = made(variant, tmp_path / "package")
    assert holding.VllmHolding(files.spec).refusal() is None
    ids = torch.randint(3, 259, (2, 120), generator=torch.Generator().manual_seed(0))
    wanted = packaged_model(files, subnet, half_tables=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "package", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, wanted(ids).logits)
    weights = dict(loaded.named_parameters())  # dense from the first pass on
    assert all(torch.equal(weights[name], value) for name, value in wanted.named_parameters())


@pytest.mark.parametrize("variant", MIXTURES)
@pytest.mark.parametrize("experts", ["sym4g64", "sym8g32"])
def test_transformers_loads_exactly_the_subnet_of_a_mixture(variant: str, experts: str, tmp_path: Path) -> None:
    """Its experts it takes out of their codes as it reads them, all with one choice, and has them in float16."""
    pytest.importorskip("compressed_tensors", reason=LIBRARY)
    from transformers import AutoModelForCausalLM

    files, subnet = made(variant, tmp_path / "package", experts=experts)
    assert holding.VllmHolding(files.spec).refusal() is None
    VllmPackages().check(tmp_path / "package", listed(tmp_path / "package"), Workload(128, 1, 64))
    ids = torch.randint(3, 259, (2, 120), generator=torch.Generator().manual_seed(0))
    wanted = packaged_model(files, subnet, half_tables=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "package", dtype=torch.float32)
    with torch.no_grad():
        ours, theirs = (model(ids).logits.log_softmax(-1) for model in (wanted, loaded))
    assert (ours.exp() * (ours - theirs)).sum(-1).mean() < 1e-4  # a token whose experts are near a tie takes others
    weights = dict(unstacked(loaded).named_parameters())
    for name, value in wanted.named_parameters():
        assert torch.equal(weights[name], value.half() if ".experts." in name else value), name


def test_experts_are_one_product_of_four_or_eight_bits(tmp_path: Path) -> None:
    spec = GridModel(save_tiny("mixtral", tmp_path, **MIXTURES["mixtral"][1])).spec
    tied = Vllm().tied(spec)
    (unit,) = (unit for unit in tied.units if unit.layer == 1 and unit.chosen is not None)
    assert unit.name == "model.layers.1.mlp.experts" and len(unit.linears) == 12 and len(unit.experts) == 4
    held = {bits: holding.VllmHolding(tied).unit_refusal(unit, Choice(bits, 64, "sym")) for bits in range(2, 9)}
    assert [bits for bits, refusal in held.items() if refusal is None] == [4, 8]
    refusal = holding.VllmHolding(tied).unit_refusal(unit, Choice(4, 64, "int"))
    assert refusal == "vLLM's experts have 4 and 8 bits with a zero at the middle, got int4g64; use sym4g64"
    assert split.model_refusal(spec, 1) is None
    assert split.model_refusal(spec, 2) == "its experts are planned for on one GPU alone"


def test_the_pattern_of_a_layer_s_experts_is_what_vllm_asks_for(tmp_path: Path) -> None:
    """It asks for the first expert's `gate_proj`, by that name, where the layer lies in the file."""
    import re

    made("mixtral", tmp_path / "package")
    groups = json.loads((tmp_path / "package" / "config.json").read_text())["quantization_config"]["config_groups"]
    patterns = [target.removeprefix("re:") for target in groups["sym4g64"]["targets"] if target.startswith("re:")]
    assert len(patterns) == 2
    assert re.match(patterns[1], "model.layers.1.block_sparse_moe.experts.0.gate_proj")
    assert not re.match(patterns[1], "model.layers.11.block_sparse_moe.experts.0.gate_proj")
    assert not re.match(patterns[1], "model.layers.1.block_sparse_moe.experts")


def test_a_symmetric_subnet_is_stored_without_any_rounding(tmp_path: Path) -> None:
    files, subnet = made("llama", tmp_path / "package")
    exact, packaged = (dict(m.named_parameters()) for m in (files.dequantized(subnet), packaged_model(files, subnet)))
    for unit in files.spec.units:
        for linear in unit.linears if unit.role != EMBEDDING else ():
            assert torch.equal(exact[f"{linear.name}.weight"], packaged[f"{linear.name}.weight"])


def test_float16_is_what_it_is_loaded_as_by_default(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason=LIBRARY)
    from transformers import AutoModelForCausalLM

    files, subnet = made("qwen2", tmp_path / "package")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "package")
    loaded(torch.tensor([[1, 2]]))
    wanted = dict(packaged_model(files, subnet, half_tables=True).named_parameters())
    for name, value in loaded.named_parameters():
        if name in wanted:
            assert value.dtype == torch.float16 and torch.equal(value, wanted[name].half()), name


def test_transformers_reads_stored_zeros_once_there_is_room_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """compressed-tensors 0.20.1 makes room for one zero a row, where what it writes itself is packed: transformers 5.23
    then refuses the package aloud. With the room that the zeros take it is the subnet; 0.17 had that room."""
    library = pytest.importorskip("compressed_tensors.compressors", reason=LIBRARY).PackedQuantizationCompressor
    from transformers import AutoModelForCausalLM

    files, subnet = made("qwen2", tmp_path / "package", AFFINE_MIX)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "package", dtype=torch.float32)
    plain = library.compress.__func__

    def with_room(cls: Any, state: dict[str, Any], scheme: Any) -> dict[str, Any]:
        found = plain(cls, state, scheme)
        if found["weight_packed"].device.type == "meta" and not scheme.weights.symmetric:
            rows, groups = found["weight_zero_point"].shape
            room = (-(-rows * scheme.weights.num_bits // 32), groups)
            found["weight_zero_point"] = torch.empty(room, dtype=torch.int32, device="meta")
        return dict(found)

    monkeypatch.setattr(library, "compress", classmethod(with_room))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "package", dtype=torch.float32)
    ids = torch.randint(3, 259, (2, 120), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, packaged_model(files, subnet, half_tables=True)(ids).logits)


def test_stored_zeros_are_read_by_the_library(tmp_path: Path) -> None:
    library = pytest.importorskip("compressed_tensors.compressors", reason=LIBRARY)
    from safetensors.torch import load_file

    files, subnet = made("qwen2", tmp_path / "package", AFFINE_MIX)
    tensors = load_file(tmp_path / "package" / WEIGHTS)
    for unit in files.spec.units:
        for linear in unit.linears if unit.role != EMBEDDING else ():
            parts = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
            there = {part: tensors[f"{linear.name}.{part}"] for part in parts if f"{linear.name}.{part}" in tensors}
            there["weight_scale"] = there["weight_scale"].float()
            scheme = scheme_of(subnet[unit.name])
            found = library.PackedQuantizationCompressor.decompress(there, scheme)["weight"]
            assert np.array_equal(found.numpy(), stored(files.folded(linear.name, subnet[unit.name])))


def test_the_config_says_of_every_linear_once_what_it_is(tmp_path: Path) -> None:
    """By the rules of the library that vLLM reads it with, and by vLLM's own: what it fuses agrees in everything."""
    quantization = pytest.importorskip("compressed_tensors.quantization", reason=LIBRARY)
    from compressed_tensors.utils.match import match_named_modules, match_targets

    files, subnet = made("ernie", tmp_path / "package", ("int4g32", "sym3g64", "sym8g32"))
    said = json.loads((tmp_path / "package" / "config.json").read_text())["quantization_config"]
    config = quantization.QuantizationConfig.model_validate(said)
    assert tuple(map(int, said["version"].split("."))) >= (0, 20) and config.format == "pack-quantized"
    schemes = {target: scheme for scheme in config.config_groups.values() for target in scheme.targets}
    matched = dict(match_named_modules(files.model, schemes, config.ignore))
    choices = {lin.name: subnet[u.name] for u in files.spec.units if u.role != EMBEDDING for lin in u.linears}
    assert matched.keys() == choices.keys()
    for name, choice in choices.items():
        assert match_targets(name, matched[name], list(schemes)) == [name]
        weights = schemes[name].weights
        assert (weights.num_bits, weights.group_size) == (choice.bits, choice.group_size)
        assert weights.symmetric == (choice.grid == "sym") and not weights.dynamic and weights.actorder is None
        assert schemes[name].input_activations is None and schemes[name].format == "pack-quantized"
    for parts in holding.FUSED[files.spec.architecture]:
        for layer in range(files.spec.num_layers):
            fused = [name for name in choices if name.split(".")[-1] in parts and f".{layer}." in name]
            assert len(fused) == len(parts) and len({choices[name] for name in fused}) == 1


def test_three_bits_have_another_shape_than_before_the_version_that_is_asked_for(tmp_path: Path) -> None:
    """0.17 put ten codes into a word: it must find the shapes wrong, and not read other codes."""
    choice = Choice.parse("sym3g32")
    files = GridModel(save_tiny("llama", tmp_path))
    for name in ("model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"):
        columns = files.weights[f"{name}.weight"].shape[1]
        assert dict(packed(name, files.folded(name, choice), choice))["weight_packed"].shape[1] == columns * 3 / 32
        assert columns * 3 / 32 != -(-columns // 10)


def test_what_no_kernel_runs_is_refused_with_what_fits(tmp_path: Path) -> None:
    files = GridModel(save_tiny("mistral", tmp_path))
    spec, runtime, rtx = files.spec, Vllm(), load("rtx-4090-24gb")
    qkv, head = (next(unit for unit in spec.units if unit.role == role) for role in ("qkv", "head"))
    refusal = runtime.holding(spec).unit_refusal(qkv, Choice.parse("int3g64"))
    assert refusal is not None and "sym3g64" in refusal and "int4g64" in refusal
    fits = [Choice.parse(text) for text in ("sym3g64", "int4g64")]
    assert all(runtime.holding(spec).unit_refusal(unit, choice) is None for unit in (qkv, head) for choice in fits)
    odd = replace(qkv, linears=tuple(replace(linear, out_features=60) for linear in qkv.linears))
    assert "over 8 rows" in str(runtime.holding(spec).unit_refusal(odd, Choice.parse("int4g64")))
    kernels = {
        text: holding.kernel(Choice.parse(text)) for text in ("sym4g32", "int4g32", "sym8g64", "int8g64", "sym3g64")
    }
    assert [*kernels.values()] == ["Marlin", "Marlin", "Marlin", "Humming", "Humming"]
    assert all(runtime.device_refusal(load(name)) is None for name in (rtx.name, "a100-sxm-80gb"))
    assert "6.1" in str(runtime.device_refusal(replace(rtx, architecture="sm_61")))
    assert "cpu" in str(runtime.device_refusal(load("macbook-air-m3-16gb")))


def test_a_plan_says_where_vllm_rounds(tmp_path: Path) -> None:
    spec, device = GridModel(save_tiny("gemma3", tmp_path)).spec, load("l4-24gb")
    said = Vllm().pricing(spec, Workload(128, 1, 32), device).rests_on()
    assert (
        holding.VllmHolding(spec).refusal() is None
        and said is not None
        and said.endswith("bfloat16, which rounds scales to 8 bits")
    )
    other = Vllm().pricing(replace(spec, architecture="LlamaForCausalLM"), Workload(128, 1, 32), device).rests_on()
    assert other is not None and "bfloat16" not in other


def test_what_is_tied_is_what_the_model_s_class_fuses(tmp_path: Path) -> None:
    spec = GridModel(save_tiny("llama", tmp_path), untied=True).spec
    assert [len(group) for group in Vllm().ties(spec)] == [3, 2, 3, 2]
    nemotron = replace(spec, architecture="NemotronForCausalLM")
    assert [len(group) for group in Vllm().ties(nemotron)] == [3, 3]
    assert Vllm().ties(replace(spec, architecture="Phi3ForCausalLM")) == ()


def test_a_config_in_which_fused_layers_differ_is_no_package(tmp_path: Path) -> None:
    made("llama", tmp_path / "package")
    path = tmp_path / "package" / "config.json"
    said, name = json.loads(path.read_text()), "model.layers.0.mlp.up_proj"
    groups = said["quantization_config"]["config_groups"]
    first, other = sorted(groups, key=lambda choice: name not in groups[choice]["targets"])[:2]
    groups[first]["targets"].remove(name)
    groups[other]["targets"].append(name)
    path.write_text(json.dumps(said))
    with pytest.raises(InputError, match="must give gate_proj, up_proj of model.layers.0.mlp one choice"):
        Vllm().packages.check(tmp_path / "package", listed(tmp_path / "package"), Workload(128, 1, 32))
