"""What vLLM takes of a GPU: a share of it, of which what weights and a trial pass leave is for keys and values.

vLLM 0.32 asks for `gpu_memory_utilization` of all memory that programs see (0.92 unless told otherwise,
`config/cache.py`; `request_memory` of `v1/worker/utils.py`). It counts what it took since before the model was loaded,
adds the peak of a pass of as many tokens as it ever runs and of a sampler of as many sequences, and what captured
graphs will take (`determine_available_memory` of `v1/worker/gpu_worker.py`). The rest is blocks (`blocks`). CUDA's
context, and on several GPUs NCCL's, are there before it begins to count: they come on top of the share.

The sizes of what is no weight and no block are from `benchmarks/published_vllm_memory.csv`: what others read in logs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from planner.request import Workload
from planner.runtimes.base import ESTIMATE, EXACT, MODELLED, CardShare, MemoryItem
from planner.runtimes.caches import CacheType
from planner.runtimes.vllm import scheduling, split
from planner.runtimes.vllm.blocks import BLOCK_TOKENS, Blocks, blocks
from profiles.device import DeviceProfile
from supernet.spec import ModelSpec

UTILIZATION = 0.92
STEP = 1e-4
"""Utilization is given in four digits, rounded down."""
WHOLE_BYTES = 1e-4
SEEN, SEEN_MEASURED = 0.98, 0.99
"""Of a datasheet's memory what programs see (H100 79.19 of 80 GiB, RTX 5090 31.37 of 32, RTX 3090 23.58 of 24), and of
what the driver says."""
SEEN_WITH_ECC = 0.91
ECC_CARDS = ("a10-24gb", "a40-48gb", "l4-24gb", "l40s-48gb", "t4-16gb")
"""Server cards whose GDDR memory keeps check bits beside the data (L40S 44.42 of 48 GiB, L4 22.03 of 24, T4 14.57 of
16)."""
SEEN_SHARED, UTILIZATION_SHARED = 0.95, 0.80
"""Where the memory is the processor's: DGX Sparks see 121.69 of 128 GiB and have 101 to 102 of these free when started,
and vLLM refuses to start with more than what is free."""
CONTEXT_BYTES, CONTEXT_BYTES_OF_SEVERAL = 660_000_000, 1_660_000_000
"""On each GPU before anything is counted: free at the start 78.57 of 79.18 GiB, and 77.64 on two GPUs."""
OUTSIDE_BYTES, OUTSIDE_BYTES_OF_SEVERAL = 290_000_000, 2_330_000_000
"""Beside PyTorch's own, in the share: 0.27 GiB on average, 2.08 on each of two GPUs and 2.17 on each of four."""
GRAPHS_BYTES, GRAPH_BYTES = 200_000_000, 7_000_000
"""What vLLM expects of all of them and of each, in logs: .84 GiB for 102, .79 for 86, .14 for 30, .36 for 16, .17 for
6, .47 for 2."""
LOGIT_BYTES = 14  # of each: two of the head's product, as float32, its probability, a random number
VALUE_BYTES = 2
SAMPLED_STATES, PASSED_STATES = 2.7, 4
"""Residuals of all tokens of a pass that are there beside the sampler's logits, and beside the widest layer."""

WEIGHTS_BESIDE = "norms and biases"
CACHE, CONTEXT = "KV cache", "CUDA's context"


def seen_bytes(device: DeviceProfile) -> int:
    """Memory of a GPU that programs see: what a utilization is a share of."""
    if device.measured:
        return int(device.memory_bytes * SEEN_MEASURED)
    if device.shares_memory:
        return int(device.memory_bytes * SEEN_SHARED)
    return int(device.memory_bytes * (SEEN_WITH_ECC if device.name in ECC_CARDS else SEEN))


def most_utilization(device: DeviceProfile) -> float:
    """vLLM's own, or less where others need the memory, too."""
    return UTILIZATION_SHARED if device.shares_memory else UTILIZATION


def usable_bytes(device: DeviceProfile, gpus: int) -> int:
    """What vLLM takes of a GPU at most, unless it is told to take more; its context included."""
    seen = seen_bytes(device)
    return min(device.usable_bytes, seen, int(most_utilization(device) * seen) + context_bytes(gpus))


def context_bytes(gpus: int) -> int:
    return CONTEXT_BYTES if gpus == 1 else CONTEXT_BYTES_OF_SEVERAL


def items(
    spec: ModelSpec, workload: Workload, device: DeviceProfile, cache: CacheType, sizes: Mapping[str, int]
) -> tuple[MemoryItem, ...]:
    """Of each GPU, with as many blocks as all sequences need at their longest. `sizes` are the bytes that a GPU has of
    each unit, by its name."""
    several, pool = workload.gpus > 1, blocks_of(spec, workload, device, cache)
    graphs = GRAPHS_BYTES + GRAPH_BYTES * scheduling.graphs(workload, device)
    tokens = scheduling.pass_tokens(workload, device)
    basis = ESTIMATE if spec.experts else MODELLED  # kernels of experts have buffers of their own
    return (
        *(MemoryItem(unit.name, sizes[unit.name], ESTIMATE, unit.name) for unit in spec.units),
        MemoryItem(WEIGHTS_BESIDE, VALUE_BYTES * spec.float_parameters, ESTIMATE),
        MemoryItem(CACHE, pool.bytes_for(workload.batch), EXACT),
        MemoryItem("peak of a pass", peak_bytes(spec, tokens, workload.batch, workload.gpus), basis),
        MemoryItem("CUDA graphs", graphs, ESTIMATE),
        MemoryItem("buffers of libraries", OUTSIDE_BYTES_OF_SEVERAL if several else OUTSIDE_BYTES, ESTIMATE),
        MemoryItem(CONTEXT, context_bytes(workload.gpus), ESTIMATE),
    )


def blocks_of(spec: ModelSpec, workload: Workload, device: DeviceProfile, cache: CacheType) -> Blocks:
    tokens = scheduling.pass_tokens(workload, device)
    return blocks(spec, workload.context, tokens, cache, workload.gpus)


def peak_bytes(spec: ModelSpec, tokens: int, sequences: int, gpus: int = 1) -> int:
    """The most that a pass of `tokens` holds at once: in its widest layer, or in the sampler, which has all logits of
    all `sequences` on each GPU."""
    residual = VALUE_BYTES * tokens * spec.hidden_size
    layer = VALUE_BYTES * tokens * _widest(spec, gpus) + PASSED_STATES * residual
    sampler = LOGIT_BYTES * sequences * spec.vocab_size + SAMPLED_STATES * residual
    return math.ceil(max(layer, sampler))


def _widest(spec: ModelSpec, gpus: int) -> int:
    """Values of a token that the products of a block make on a GPU and read again: rows of what reads the block's
    input, and columns of what makes its output."""
    rows: Counter[str] = Counter()
    columns: Counter[str] = Counter()
    for unit in split.divided(spec, gpus).units:
        linears, times = () if unit.is_table else unit.linears, unit.chosen or 1
        if unit.chosen is not None:  # every expert that a token chose makes as much as the first
            linears = tuple(linear for linear in linears if linear.name.startswith(f"{unit.experts[0]}."))
        for linear in linears:
            block = linear.name.rpartition(".")[0]
            if unit.role in split.OUTPUTS or (unit.chosen is not None and linear.name.endswith("down_proj")):
                columns[block] += times * linear.in_features
            else:
                rows[block] += times * linear.out_features
    return max((rows + columns).values())


def share(
    found: tuple[MemoryItem, ...], pool: Blocks, device: DeviceProfile, workload: Workload, limit_bytes: int
) -> CardShare | None:
    """What vLLM takes within `limit_bytes` of each GPU, and how many blocks that leaves beside the `found` items; None
    where they leave none."""
    seen, context = seen_bytes(device), context_bytes(workload.gpus)
    steps = (limit_bytes - context) / seen / STEP + WHOLE_BYTES  # of a limit that was a utilization
    utilization = min(most_utilization(device), math.floor(steps) * STEP)
    taken = sum(item.bytes for item in found if item.name not in (CACHE, CONTEXT))
    left = math.ceil(seen * utilization) - taken
    count = left // pool.block_bytes
    if utilization <= 0 or count < 1:
        return None
    return CardShare(
        utilization=round(utilization, 4),
        pool_bytes=count * pool.block_bytes,
        blocks=count,
        block_tokens=BLOCK_TOKENS,
        sequences=round(pool.concurrency(left), 2),
    )
