"""One token of a whole decoder through each quantized kernel at hand, beside what is predicted for it.

All layers of a model in 4 bits: products as runtimes fuse them, norms, attention over what is cached, and the head in
bfloat16; no rotations; in one CUDA graph on a GPU. Predicted is the sum of the layers' products as they were timed one
by one (products.json), and what `bitfleet plan` says of vLLM by the bandwidth alone and by those times.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from gpu_record import LLAMA_1B, LLAMA_8B, Record, Shape
from torch import Tensor, nn

from planner.request import Workload
from planner.runtimes.base import DECODE
from planner.runtimes.vllm.runtime import Vllm
from profiles.device import DeviceProfile
from profiles.gpu_times import timing
from profiles.gpu_ways import WAYS, Float, Product, Way
from profiles.kernels import KernelTable
from supernet.model import spec_of
from supernet.recipe import Recipe

BITS = 4
CACHED = 512  # tokens
REPEATS = 20


def run(record: Record) -> None:
    known = record.path.with_name("products.json")
    found = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    profile = DeviceProfile.from_json(found["profile"]) if "profile" in found else None
    rows: list[dict[str, Any]] = []
    for shape in dict.fromkeys((record.shape(LLAMA_1B), record.shape(LLAMA_8B))):
        for way in (way for way in WAYS if BITS in way.bits or way.name == Float.name):
            row: dict[str, Any] = {"shape": shape.name, "kernel": way.name}
            rows.append(row)
            reason = way.refusal(record.device)
            if reason is None:
                try:
                    row |= taken(record, shape, way)
                    row |= {} if profile is None else predicted(profile, shape, way)
                except Exception as error:  # a kernel that does not run is a line, and the others go on
                    reason = f"{type(error).__name__}: {error}"[:300]
            if reason is not None:
                row["left_out"] = reason
            record.add(tokens=rows)


def taken(record: Record, shape: Shape, way: Way) -> dict[str, Any]:
    token = one_token(shape, way, record.device)
    once = timing([token], record.device, REPEATS)
    return {"measured_ms": once.median_ms, "p10_ms": once.p10_ms, "p90_ms": once.p90_ms}


def fused(shape: Shape) -> dict[str, tuple[int, int]]:
    """`(in_features, out_features)` of a layer's products."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "qkv": (shape.hidden, queries + 2 * keys), "o": (queries, shape.hidden),
        "gate_up": (shape.hidden, 2 * shape.feed_forward), "down": (shape.feed_forward, shape.hidden),
    }  # fmt: skip


def one_token(shape: Shape, way: Way, device: str) -> Callable[[], Tensor]:
    bits = BITS if BITS in way.bits else way.bits[0]
    layers = [
        {name: way.product(bits, way.group_size(bits), *size, device) for name, size in fused(shape).items()}
        for _ in range(shape.layers)
    ]
    head = Float().product(16, 1, shape.hidden, shape.vocabulary, device)
    size = (1, shape.kv_heads, CACHED, shape.head_dim)
    caches = [[torch.randn(size, dtype=torch.bfloat16, device=device) for _ in range(2)] for _ in layers]
    norm = torch.ones(shape.hidden, dtype=torch.bfloat16, device=device)
    start = torch.randn(1, shape.hidden, dtype=torch.bfloat16, device=device)
    queries = shape.heads * shape.head_dim

    def layer(x: Tensor, products: dict[str, Product], keys: Tensor, values: Tensor) -> Tensor:
        made = products["qkv"](nn.functional.rms_norm(x, (shape.hidden,), norm))
        query = made[:, :queries].view(1, shape.heads, 1, shape.head_dim)
        read = nn.functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
        x = x + products["o"](read.reshape(1, queries))
        gate, up = products["gate_up"](nn.functional.rms_norm(x, (shape.hidden,), norm)).chunk(2, -1)
        return x + products["down"](nn.functional.silu(gate) * up)

    def token() -> Tensor:
        x = start
        for products, (keys, values) in zip(layers, caches, strict=True):
            x = layer(x, products, keys, values)
        return head(nn.functional.rms_norm(x, (shape.hidden,), norm)).argmax(-1)

    return token


def predicted(profile: DeviceProfile, shape: Shape, way: Way) -> dict[str, float]:
    """Milliseconds: of products as they were timed, and of vLLM by the device's bandwidth alone."""
    bits = BITS if BITS in way.bits else way.bits[0]
    found: dict[str, float] = {}
    sizes = fused(shape).values()
    times = [
        profile.kernels.estimate(way.runtime, bits, way.group_size(bits), 1, inputs, outputs, 1, way.name)
        for inputs, outputs in sizes
    ]
    if all(times):
        found["products_ms"] = shape.layers * sum(one.ms for one in times if one)
    if bits == BITS:
        spec = spec_of(shape.config(), shape.name)
        runtime = Vllm()
        subnet = Recipe(bits=(BITS, 8)).space(spec).uniform(spec, BITS)
        for name, known in (("bandwidth", replace(profile, kernels=KernelTable())), ("kernels", profile)):
            pricing = runtime.pricing(spec, Workload(CACHED + 64, 1, CACHED), known)
            found[f"vllm_by_{name}_ms"] = sum(item.ms for item in pricing.latency(subnet, DECODE))
    return found
