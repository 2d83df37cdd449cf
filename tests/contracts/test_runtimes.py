"""What every runtime promises the planner, held by bitfleet's own: packages are read back without their writers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from planner.runtimes import OWN, RUNTIMES
from planner.runtimes.llamacpp.formats import Q2_0, TYPES, type_of
from planner.runtimes.llamacpp.runtime import LlamaCpp
from planner.runtimes.llamacpp.serving import LIBRARY, WEIGHTS
from planner.runtimes.llamacpp.tensors import tensors_of
from planner.runtimes.mlx.runtime import Mlx
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.source import FoldedMatrix, dequantized
from planner.runtimes.vllm.runtime import Vllm
from planner.testing.contract import RuntimeContract
from planner.testing.models import tiny_model
from planner.testing.supernets import RoundedSupernet
from supernet.space import Choice
from supernet.spec import EMBEDDING, ModelSpec, UnitSpec
from tests.planner.folder_fixtures import stored

Matrices = Mapping[str, NDArray[np.float32]]


def test_each_of_bitfleet_s_own_is_held_to_it() -> None:
    tests = (test for test in globals().values() if isinstance(test, type) and test.__module__ == __name__)
    held = {test.runtime.name: type(test.runtime) for test in tests if issubclass(test, RuntimeContract)}
    assert held == OWN and OWN.items() <= RUNTIMES.items()


def codes_of(words: NDArray[Any], columns: int) -> NDArray[np.float32]:
    """Codes `(rows, columns)`: each row is a stream of bits, low ones first."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    bits = stream.shape[-1] // columns
    each = stream[:, : bits * columns].reshape(len(stream), columns, bits)
    return np.asarray((each * 2 ** np.arange(bits)).sum(-1), np.float32)


def half(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values.astype(np.float16).astype(np.float32)


def in_blocks(choice: Choice, folded: FoldedMatrix) -> NDArray[np.float32]:
    """Of the numbers that the grid stores, as llama.cpp multiplies them."""
    sides = {name: np.asarray(part, np.float32) for name, part in folded.sides.items()}
    groups = choice.format.block // choice.group_size
    codes, scale = np.asarray(folded.codes, np.float32), np.repeat(sides["d"], groups, axis=1) * sides["scales"]
    if "dmin" not in sides:
        return affine(codes, scale, 2.0 ** (choice.bits - 1))
    least = np.repeat(sides["dmin"], groups, axis=1) * sides["minima"]
    return affine(codes, scale, 0.0) - np.repeat(least, choice.group_size, axis=1)


def affine(codes: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | float) -> NDArray[np.float32]:
    """`(code - zero) scale` of codes `(rows, columns)`, each scale and zero for a group of columns."""
    groups = codes.reshape(*scale.shape, -1)
    zeros = np.broadcast_to(np.asarray(zero, np.float32), scale.shape)
    return np.asarray((groups - zeros[..., None]) * scale[..., None], np.float32).reshape(codes.shape)


class TestOnnxRuntime(RuntimeContract):
    runtime = OnnxRuntime()
    engine_needs = ("onnx", "onnxruntime", "onnxruntime_genai")

    def weights(self, folder: Path, spec: ModelSpec) -> Matrices:
        """The graph names its matrices by layer and module, and joins query, key and value."""
        model = onnx.load(folder / "model.onnx")
        arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        found: dict[str, NDArray[np.float32]] = {}
        for unit in spec.units:
            part = {"qkv": "qkv_proj", "embedding": "lm_head"}.get(unit.role)
            for group in [unit.linears] if part else [[linear] for linear in unit.linears]:
                tail = part or group[0].name.rpartition(".")[2]
                layer = "" if unit.layer is None else f"layers.{unit.layer}."
                (name,) = (
                    n.removesuffix(".codes") for n in arrays if n.endswith(".codes") and layer in n and tail in n
                )
                codes = arrays[f"{name}.codes"]
                flat = codes_of(codes.reshape(len(codes), -1), group[0].in_features)
                bits = codes[0].size * 8 // group[0].in_features
                scale, zero = arrays[f"{name}.scales"], arrays.get(f"{name}.zeros")
                zeros = (
                    2.0 ** (bits - 1)
                    if zero is None
                    else codes_of(zero, 8 * zero.shape[1] // bits)[:, : scale.shape[1]]
                )
                rows = np.cumsum([linear.out_features for linear in group])[:-1]
                whole = affine(flat, scale, zeros)
                found |= zip((linear.name for linear in group), np.split(whole, rows), strict=True)
        return found


class TestLlamaCpp(RuntimeContract):
    runtime = LlamaCpp()
    engine_needs = (LIBRARY,)

    def weights(self, folder: Path, spec: ModelSpec) -> Matrices:
        """By the package `gguf`, which does not know Q2_0."""
        from supernet.sources.gguf_file import read_head

        head = read_head(folder / WEIGHTS, {kind.number: (kind.block, kind.block_bytes) for kind in TYPES.values()})
        names = {tensor.name: tensor.linears[0].name for tensor in tensors_of(spec) if tensor.linears}
        return {
            linear: _two_bits(head.tensors[name])
            if head.tensors[name].kind == Q2_0.number
            else head.tensors[name].floats()
            for name, linear in names.items()
        }

    def stored(self, unit: UnitSpec, choice: Choice, folded: FoldedMatrix) -> NDArray[np.float32]:
        """Exact on the symmetric grid; of the other one scales are float16, and so is the minimum of a type."""
        if choice.format.symmetric:
            return dequantized(folded)
        if choice.format.block > 1:
            return in_blocks(choice, folded)
        if type_of(choice).name not in ("Q4_1", "Q5_1"):
            return stored(folded)
        least = np.repeat(half(-folded.scale * folded.zero), choice.group_size, axis=1)
        return affine(folded.codes.astype(np.float32), half(folded.scale), 0.0) + least


def _two_bits(tensor: Any) -> NDArray[np.float32]:
    blocks = np.fromfile(tensor.file, np.uint8, tensor.bytes, offset=tensor.offset).reshape(-1, Q2_0.block_bytes)
    codes = codes_of(blocks[:, 2:], Q2_0.block)
    return affine(codes, np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32), 1.0).reshape(tensor.shape)


class TestVllm(RuntimeContract):
    runtime = Vllm()

    def weights(self, folder: Path, spec: ModelSpec) -> Matrices:
        from safetensors.numpy import load_file

        arrays = load_file(folder / "model.safetensors")
        found: dict[str, NDArray[np.float32]] = {}
        for unit in spec.units:
            for linear in unit.linears:
                if f"{linear.name}.weight" in arrays:
                    found[linear.name] = arrays[f"{linear.name}.weight"].astype(np.float32)
                    continue
                words, scale = arrays[f"{linear.name}.weight_packed"], arrays[f"{linear.name}.weight_scale"]
                bits = words.shape[1] * 32 // linear.in_features
                zero: Any = 2.0 ** (bits - 1)
                if f"{linear.name}.weight_zero_point" in arrays:
                    zero = codes_of(arrays[f"{linear.name}.weight_zero_point"].T, linear.out_features).T
                found[linear.name] = affine(codes_of(words, linear.in_features), scale.astype(np.float32), zero)
        return found

    def stored(self, unit: UnitSpec, choice: Choice, folded: FoldedMatrix) -> NDArray[np.float32]:
        """An embedding is float16; scales are, which those of the symmetric grid are already."""
        if unit.role == EMBEDDING:
            return half(dequantized(folded))
        return dequantized(folded) if choice.format.symmetric else stored(folded)


class TestMlx(RuntimeContract):
    runtime = Mlx()

    def weights(self, folder: Path, spec: ModelSpec) -> Matrices:
        from safetensors.numpy import load_file

        arrays = load_file(folder / "model.safetensors")
        found: dict[str, NDArray[np.float32]] = {}
        for linear in (linear for unit in spec.units for linear in unit.linears):
            codes = codes_of(arrays[f"{linear.name}.weight"], linear.in_features)
            scale, bias = (
                arrays[f"{linear.name}.{part}"].astype(np.float32)[..., None] for part in ("scales", "biases")
            )
            groups = codes.reshape(*scale.shape[:2], -1)
            found[linear.name] = (groups * scale + bias).reshape(codes.shape)
        return found

    def stored(self, unit: UnitSpec, choice: Choice, folded: FoldedMatrix) -> NDArray[np.float32]:
        """Exact on the symmetric grid; of the other one scales are float16, and so is what code 0 stands for."""
        return dequantized(folded) if choice.format.symmetric else stored(folded, bias=True)


@pytest.mark.parametrize(
    ("changes", "reason", "held_by"),
    [
        ({"rotary_dim": 8}, "got 8", ("vllm", "mlx")),  # these compute with the model's own settings
        ({"activation": "quick_gelu"}, "quick_gelu", ("vllm",)),
    ],
)
@pytest.mark.parametrize("name", OWN)
def test_what_some_compute_is_refused_by_the_others(
    name: str, changes: dict[str, Any], reason: str, held_by: tuple[str, ...], tmp_path: Path
) -> None:
    spec = RoundedSupernet(tiny_model(tmp_path)).spec
    refusal = OWN[name]().holding(replace(spec, **changes)).refusal()
    assert refusal is None if name in held_by else refusal is not None and reason in refusal
