"""The bandwidth that vLLM's kernel of packed weights reaches on a GPU, as it was measured with a mixture's experts.

Nobody published times of that kernel (Marlin) with a dense model's weights; there are some of mixtures whose experts
have 4 bits in groups of 32. With one token an expert, and enough of them, such a call reads and hardly computes. On
GPUs of up to 3 TB/s it reads as fast as floats are read; beyond that it does not keep up (3.4 of 4.1 TB/s on an H200,
4.1 of 6.7 on a B200).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from profiles.gpu_tables.package import Columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS = (
    "kernel_source", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size",
    "latency",
)  # fmt: skip
KERNEL = "marlin"
MATRICES = 3  # of an expert: gate, up, down
BYTES_INT4 = 4 / 8 + 2 / 32  # a weight
BYTES_MXFP4 = 4 / 8 + 1 / 32
LARGE_BYTES = 2.5e8  # no cache holds them
LEAST_CALLS = 5


def bytes_per_ms(columns: Columns, weight_bytes: float = BYTES_INT4) -> float | None:
    """Of calls that give each expert one token at most: the median of what is read beyond what the smallest call takes.
    None where there are too few."""
    packed = np.char.find(np.char.lower(columns["kernel_source"].astype(str)), KERNEL) >= 0
    ms: NDArray[Any] = columns["latency"][packed]
    tokens, hidden, wide, chosen, count, parts, shares = (columns[name][packed] for name in COLUMNS[1:-1])
    pairs = tokens * chosen / shares  # of a token and an expert, on one GPU
    size = MATRICES * hidden * (wide / parts) * pairs * weight_bytes
    large = (pairs >= 1) & (pairs <= count / shares) & (size >= LARGE_BYTES)
    if large.sum() < LEAST_CALLS:
        return None
    return float(np.median(size[large] / (ms[large] - ms.min())))
