"""Peak memory of llama.cpp on a GPU and on the machine that the GPU is in: an estimate, for nothing was measured.

What is where follows `placement`; weights and cache take what they take on a processor, but that a GPU repacks nothing.
The buffers of a pass are those that logs of llama.cpp report with flash attention: on the GPU the logits and one
residual of a chunk (Llama 2 7B 70.5 MiB, Llama 3 8B 258.5 MiB), or what a layer makes with the mask twice (as floats
and as half-precision floats) and a copy of the largest matrix that the host has; on the host the mask and a residual.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from planner.request import Workload
from planner.runtimes.base import DEVICE, ESTIMATE, HOST, MemoryItem
from planner.runtimes.calibrated import ACTIVATIONS, BASE, LAYER_BYTES
from planner.runtimes.llamacpp import amounts, costs, memory, tensors
from planner.runtimes.llamacpp.placement import GPU_CHUNK_TOKENS, Placed
from planner.runtimes.llamacpp.serving import cache_of, padded
from profiles.device import DeviceProfile
from supernet.space import Subnet
from supernet.spec import ModelSpec

CUDA_BYTES = 600_000_000
"""Before any weight: CUDA's context, its kernels and their workspace. Others reckon with 457 MiB (Ollama) and report up
to 749 MiB (a card of 2025). What a driver for Vulkan takes nobody published: it is taken for as much."""
CUDA_HOST_BYTES = 250_000_000
"""Of CUDA's libraries on the host."""
MASK_BYTES = 4 + 2


def items(spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile) -> tuple[MemoryItem, ...]:
    """In two pools; in one where a GPU has no memory of its own."""
    placed = Placed.of(spec, workload, device)
    sizes = _sizes(spec, subnet)
    found = (*_weights(placed, sizes), *_around(placed, sizes, workload, device.kind))
    return tuple(replace(item, pool=DEVICE) for item in found) if device.shares_memory else found


def _sizes(spec: ModelSpec, subnet: Subnet) -> dict[str, int]:
    """Bytes of each unit's weights; those of the same shapes are computed once."""
    known: dict[tuple[Any, ...], int] = {}
    sizes = {}
    for unit in spec.units:
        alike = (amounts.matrices(unit), choice := subnet[unit.name])
        known[alike] = sizes[unit.name] = known.get(alike) or amounts.weight_bytes(unit, choice)
    return sizes


def _weights(placed: Placed, sizes: Mapping[str, int]) -> Iterator[MemoryItem]:
    for unit in placed.spec.units:
        size = sizes[unit.name]
        if placed.on_gpu(unit):
            yield MemoryItem(unit.name, size, ESTIMATE, unit.name)
        if placed.on_host(unit):
            yield MemoryItem(unit.name, size, ESTIMATE, unit.name, HOST)


def _around(placed: Placed, sizes: Mapping[str, int], workload: Workload, kind: str) -> Iterator[MemoryItem]:
    spec, gpu = placed.spec, placed.layers
    floats = tensors.float_bytes(spec)
    cache = memory.kv_bytes(spec, workload.context, workload.batch, cache_of(workload))
    known = {name: costs.USUAL[name] for name in (BASE, LAYER_BYTES, costs.TOKEN_BYTES)}
    process = round(known[BASE] + known[LAYER_BYTES] * spec.num_layers) + CUDA_HOST_BYTES
    for pool, layers, buffers in (
        (DEVICE, gpu, gpu_buffers(placed, sizes, workload)),
        (HOST, spec.num_layers - gpu, host_buffers(placed, workload)),
    ):
        yield MemoryItem("norms and biases", floats * layers // spec.num_layers, ESTIMATE, None, pool)
        yield MemoryItem("KV cache", cache * layers // spec.num_layers, ESTIMATE, None, pool)
        yield MemoryItem("buffers of a pass", buffers, ESTIMATE, None, pool)
    yield MemoryItem("CUDA" if kind == "cuda" else "Vulkan", CUDA_BYTES, ESTIMATE)
    yield MemoryItem("vocabulary", round(known[costs.TOKEN_BYTES] * spec.vocab_size), ESTIMATE, None, HOST)
    yield MemoryItem("runtime", process, ESTIMATE, None, HOST)


def gpu_buffers(placed: Placed, sizes: Mapping[str, int], workload: Workload) -> int:
    spec, tokens = placed.spec, _chunk(workload)
    logits = amounts.FLOAT_BYTES * tokens * (spec.vocab_size + spec.hidden_size)
    layer = amounts.FLOAT_BYTES * tokens * (2 * spec.widest + 3 * spec.hidden_size)
    masks = MASK_BYTES * tokens * padded(workload.context)
    return max(logits, layer + masks + _copied(placed, sizes))


def host_buffers(placed: Placed, workload: Workload) -> int:
    spec, tokens = placed.spec, _chunk(workload)
    inputs = amounts.FLOAT_BYTES * tokens * (padded(workload.context) + spec.hidden_size)
    made = 0 if placed.whole else amounts.layer_values(spec) * costs.USUAL[ACTIVATIONS]
    logits = (2 * memory.LOGIT_BYTES * workload.batch + memory.CANDIDATE_BYTES) * spec.vocab_size
    return inputs + round(amounts.FLOAT_BYTES * tokens * made) + logits


def _copied(placed: Placed, sizes: Mapping[str, int]) -> int:
    """Of the host's matrices, which a prompt copies to the GPU one after another, the largest."""
    left = (unit for unit in placed.spec.units if not placed.on_gpu(unit) and not unit.is_table)
    return max((sizes[unit.name] // (1 if unit.chosen else len(unit.linears)) for unit in left), default=0)


def _chunk(workload: Workload) -> int:
    return min(GPU_CHUNK_TOKENS, workload.context)
