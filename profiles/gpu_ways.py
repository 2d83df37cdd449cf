"""Ways to multiply on a GPU, those that are installed: each makes a product of random weights that can be timed.

torch is imported where a product is made, and other libraries too: what is missing, or does not run on a GPU, says why.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, ClassVar

TORCH, FLOAT_BITS, FLOAT_GROUP = "torch", 16, 1
"""How a kernel table names torch's product of floats, which has no groups."""

Product = Callable[[Any], Any]
"""Of activations `(rows, in_features)`, bfloat16 on the device, to `(rows, out_features)`."""


class Way(ABC):
    """One kernel. `runtime` is who multiplies so, as kernel tables name it; `bits` are those of a weight."""

    name: ClassVar[str]
    runtime: ClassVar[str]
    bits: ClassVar[tuple[int, ...]]
    needs: ClassVar[str] = "torch"  # the module that brings it
    compiles: ClassVar[bool] = False  # whether it compiles a kernel for each shape and number of rows, into a cache

    def refusal(self, device: str) -> str | None:
        """Why it cannot run on a device such as cuda:0, in one line; None where it may."""
        return None if find_spec(self.needs) else f"{self.needs} is not installed"

    def group_size(self, bits: int) -> int:
        """The inputs that share a scale, as packages for vLLM have them by default."""
        return 64 if bits < 4 else 32

    @abstractmethod
    def product(self, bits: int, group_size: int, in_features: int, out_features: int, device: str) -> Product:
        """With random weights. Whatever its library raises where it does not run."""


class Float(Way):
    name, runtime, bits = "bfloat16", TORCH, (FLOAT_BITS,)

    def group_size(self, bits: int) -> int:
        return FLOAT_GROUP

    def product(self, bits: int, group_size: int, in_features: int, out_features: int, device: str) -> Product:
        import torch

        weight = torch.randn(out_features, in_features, dtype=torch.bfloat16, device=device)
        return lambda x: torch.nn.functional.linear(x, weight)


class TinyGemm(Way):
    """torch's own product of 4 bits."""

    name, runtime, bits = "tinygemm", TORCH, (4,)

    def product(self, bits: int, group_size: int, in_features: int, out_features: int, device: str) -> Product:
        import torch

        tiles, aten = 8, torch.ops.aten
        sides = torch.rand(in_features // group_size, out_features, 2, device=device).bfloat16()
        if device == "cpu":
            codes = torch.randint(0, 16, (out_features, in_features), dtype=torch.int32)
            packed = aten._convert_weight_to_int4pack_for_cpu(codes, 1)
            return lambda x: aten._weight_int4pack_mm_for_cpu(x, packed, group_size, sides)
        pairs = torch.randint(0, 256, (out_features, in_features // 2), dtype=torch.uint8, device=device)
        packed = aten._convert_weight_to_int4pack(pairs, tiles)
        return lambda x: aten._weight_int4pack_mm(x, packed, group_size, sides)


class Humming(Way):
    """What vLLM multiplies by where Marlin does not."""

    name, runtime, bits, needs = "Humming", "vllm", (4, 2, 3, 8, 6, 5), "humming"
    compiles = True

    def refusal(self, device: str) -> str | None:
        return super().refusal(device) or (None if device.startswith("cuda") else "Humming runs on NVIDIA GPUs alone")

    def product(self, bits: int, group_size: int, in_features: int, out_features: int, device: str) -> Product:
        import json

        import torch
        from humming.layer import HummingLayer
        from humming.tune import get_heuristics_config

        settings = {"dtype": f"int{bits}", "group_size": group_size}
        with torch.cuda.device(device):
            layer = HummingLayer(
                shape_n=out_features, shape_k=in_features, weight_config=settings, torch_dtype=torch.bfloat16
            ).to(device)
            layer.load_from_unquantized(torch.randn(out_features, in_features, dtype=torch.bfloat16, device=device))
            layer.transform()
        tuned: dict[int, str] = {}

        def product(x: Any) -> Any:
            rows = len(x)
            if rows not in tuned:
                tuned[rows] = json.dumps(get_heuristics_config(layer_config=layer.humming_config, shape_m=rows))
            return layer(x, tuning_config=tuned[rows])

        return product


class Marlin(Way):
    """vLLM's own kernel, through the functions by which vLLM tests it."""

    name, runtime, bits, needs = "Marlin", "vllm", (4, 8), "vllm"

    def refusal(self, device: str) -> str | None:
        return super().refusal(device) or (None if device.startswith("cuda") else "Marlin runs on NVIDIA GPUs alone")

    def product(self, bits: int, group_size: int, in_features: int, out_features: int, device: str) -> Product:
        import torch
        from vllm.model_executor.layers.quantization.utils import marlin_utils, marlin_utils_test
        from vllm.scalar_type import scalar_types

        kind = {4: scalar_types.uint4b8, 8: scalar_types.uint8b128}[bits]
        weight = torch.randn(in_features, out_features, dtype=torch.bfloat16, device=device)
        _, codes, scales, indices, order, _ = marlin_utils_test.marlin_quantize(weight, kind, group_size, False)
        space = marlin_utils.marlin_make_workspace_new(torch.device(device))
        zeros = marlin_utils.marlin_make_empty_g_idx(torch.device(device))
        return lambda x: marlin_utils.apply_gptq_marlin_linear(
            x, codes, scales, zeros, indices, order, space, kind, out_features, in_features, True
        )


WAYS: tuple[Way, ...] = (Float(), TinyGemm(), Marlin(), Humming())
