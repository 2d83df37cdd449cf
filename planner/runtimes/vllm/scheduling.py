"""How much vLLM does at once: tokens of a pass and the batches that it captures graphs of, as `vllm serve` sets them.

Read from vLLM 0.32: `EngineArgs.get_batch_defaults` and `_set_default_max_num_seqs_and_batched_tokens_args`
(engine/arg_utils.py), `_set_cudagraph_sizes` (config/vllm.py).
"""

from __future__ import annotations

from planner.request import Workload
from profiles.device import DeviceProfile

GIB = 2**30
LARGEST = (160 * GIB, 16384)
LARGE = (70 * GIB, 8192)
SMALL_TOKENS = 2048  # an A100 of 80 GB too, by its name
MOST_CAPTURED, MOST_CAPTURED_B200 = 512, 1024
STRIDE_8_TO, STRIDES = 256, (8, 16)


def pass_tokens(workload: Workload, device: DeviceProfile) -> int:
    """`max_num_batched_tokens`: the tokens of a pass, of prompts and answers together."""
    usual = SMALL_TOKENS
    if device.memory_bytes >= LARGEST[0]:
        usual = LARGEST[1]
    elif device.memory_bytes >= LARGE[0] and "a100" not in f"{device.name} {device.model}".lower():
        usual = LARGE[1]
    return max(workload.batch, min(usual, workload.batch * workload.context))


def graphs(workload: Workload, device: DeviceProfile) -> int:
    """How many CUDA graphs are captured: of batches with prompts in pieces, and of batches that only answer whole."""
    ceiling = MOST_CAPTURED_B200 if f"{device.architecture}".startswith("sm_10") else MOST_CAPTURED
    most = min(2 * workload.batch, ceiling, pass_tokens(workload, device))
    sizes = {1, 2, 4, *range(8, STRIDE_8_TO, STRIDES[0]), *range(STRIDE_8_TO, most + 1, STRIDES[1]), workload.batch}
    captured = [size for size in sizes if size <= most]
    return len(captured) + sum(size <= workload.batch for size in captured)
